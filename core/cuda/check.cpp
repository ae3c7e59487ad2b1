#include "core/cuda/check.h"

#include <fmt/format.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/error.h"

namespace occam::cuda {

namespace {

std::atomic<uint64_t> work_noted{0};

/// Statuses of a kernel that failed while it ran; the call that returns one is often an innocent later one.
bool is_asynchronous(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

bool sync_after_launch() {
  static const bool on = [] {
    const char* value = std::getenv("OCCAM_SYNC");
    return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
  }();
  return on;
}

std::string describe(cudaError_t status) {
  std::string text = fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status));
  if (is_asynchronous(status) && !sync_after_launch())
    text += "; the fault may belong to an earlier kernel: run again with OCCAM_SYNC=1 to see which op it was";
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorUnsupportedPtxVersion) {
    int device = 0;
    int major = 0;
    int minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    text += fmt::format("; this GPU needs a build with -DCMAKE_CUDA_ARCHITECTURES={}{} (or a newer driver)",
                        major, minor);
  }
  return text;
}

ErrorKind kind_of(cudaError_t status) {
  return status == cudaErrorMemoryAllocation ? ErrorKind::memory : ErrorKind::device;
}

}  // namespace

void throw_cuda_error(cudaError_t status, const char* call, const char* file, int line) {
  cudaGetLastError();  // an error that was thrown must not be found again by the next launch check
  fail(kind_of(status), fmt::format("{}:{}: {} failed: {}", file, line, call, describe(status)));
}

void note_work() noexcept { ++work_noted; }
uint64_t work_count() noexcept { return work_noted; }

void check_launch(const char* kernel, void* stream) {
  note_work();
  cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess)
    fail(kind_of(status), fmt::format("kernel {} was not launched: {}", kernel, describe(status)));
  if (!sync_after_launch()) return;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(as_stream(stream), &capture) == cudaSuccess &&
      capture != cudaStreamCaptureStatusNone)
    return;
  status = cudaStreamSynchronize(as_stream(stream));
  if (status != cudaSuccess)
    fail(kind_of(status), fmt::format("kernel {} failed while it ran: {}", kernel, describe(status)));
}

void report_cuda_error(cudaError_t status, const char* call) noexcept {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  if (status == cudaErrorCudartUnloading || status == cudaErrorContextIsDestroyed) return;
  std::fprintf(stderr, "occam: %s failed: %s (%s)\n", call, cudaGetErrorString(status),
               cudaGetErrorName(status));
}

DeviceGuard::DeviceGuard(int device) {
  OCCAM_CUDA_CHECK(cudaGetDevice(&previous_));
  if (previous_ == device) return;
  OCCAM_CUDA_CHECK(cudaSetDevice(device));
  changed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (changed_) report_cuda_error(cudaSetDevice(previous_), "cudaSetDevice");
}

AllowInCapture::AllowInCapture() {
  report_cuda_error(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode");
}

AllowInCapture::~AllowInCapture() {
  report_cuda_error(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode");
}

}  // namespace occam::cuda
