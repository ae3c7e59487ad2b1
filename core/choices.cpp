#include "core/choices.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#if OCCAM_CUDA
#include "core/cuda/algorithm_store.h"
#endif

namespace occam {

Json measured_choices([[maybe_unused]] Device device) {
#if OCCAM_CUDA
  if (device.is_cuda()) return cuda::gemm_choices(device.index);
#endif
  return nullptr;
}

bool restore_choices(Device device, const Json& choices) {
#if OCCAM_CUDA
  if (device.is_cuda() && !choices.is_null()) {
    try {
      return cuda::restore_gemm_choices(device.index, choices);
    } catch (const nlohmann::json::exception& e) {
      fail(ErrorKind::input, fmt::format("a checkpoint's choices of algorithms are damaged: {}", e.what()));
    }
  }
#endif
  return choices.is_null() && device.is_cpu();
}

}  // namespace occam
