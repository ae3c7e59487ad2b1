#pragma once
// What a device reaches: measured here, and by its datasheet.
#include <string>

#include "core/device.h"
#include "core/dtype.h"
#include "core/shape.h"

namespace occam {

class Module;

struct DeviceCeilings {
  double flops = 0;  // a second, of a large matrix product
  double bytes = 0;  // a second, read plus written, of a large copy
};

/// Measured once a process, device and kind of product (bf16, or f32 as ops/blas.h has it: true f32 or TF32),
/// in well under a second; the first call pays. On the CPU too.
DeviceCeilings measured_ceilings(Device device, DType dtype);

/// Dense FLOPs a second by NVIDIA's datasheet for a device's name ("NVIDIA H100 80GB HBM3"); 0 when the
/// device is not in the table.
double datasheet_flops(const std::string& device_name, DType dtype, bool tf32);

/// FLOPs of a training step's products for one image: three times the forward pass of Module::plan, since a
/// backward pass makes two products for each. Frozen layers and recomputation do not change it.
double train_flops_per_image(const Module& model, const Shape& image);

/// Share of a device's FLOP rate that a training run makes use of ("MFU").
class ModelRate {
 public:
  /// On a GPU measures its ceilings in the model's compute dtype when that has not been done; on the CPU no
  /// share is told.
  ModelRate(const Module& model, const Shape& image);

  struct Share {
    double of_measured = 0, of_datasheet = 0;  // 0: unknown
  };
  Share share(double images_per_s) const;
  /// ", MFU 28 % of measured, 21 % of datasheet"; empty on the CPU.
  std::string text(double images_per_s) const;

 private:
  double flops_per_image_ = 0, measured_ = 0, datasheet_ = 0;
};

}  // namespace occam
