#pragma once
#include <cstdint>
#include <string>

namespace occam {

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  bool is_cpu() const { return type == DeviceType::cpu; }
  bool is_cuda() const { return type == DeviceType::cuda; }
  bool operator==(const Device&) const = default;
  /// "cpu" or "cuda:0"
  std::string str() const;
};

inline constexpr Device kCPU{};
inline constexpr Device cuda_device(int index = 0) { return {DeviceType::cuda, index}; }

/// True when this build has CUDA and a usable GPU is present. Never throws.
bool cuda_available();
int cuda_device_count();
/// "NVIDIA H100 80GB HBM3" of the first GPU; "cpu" without one.
std::string device_name();
/// Waits for all work queued on the device; nothing on the CPU.
void synchronize(Device device);

}  // namespace occam
