#include "core/choices.h"

#include <nlohmann/json.hpp>
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
  if (device.is_cuda() && !choices.is_null()) return cuda::restore_gemm_choices(device.index, choices);
#endif
  return choices.is_null() && device.is_cpu();
}

}  // namespace occam
