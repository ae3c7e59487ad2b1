#pragma once
// Choices made by measurement, as a checkpoint keeps them: a run that is resumed repeats them bit for bit.
#include "core/device.h"
#include "core/io/json.h"

namespace occam {

/// The choices that this process has made or found for a device; null where nothing is measured, as on a CPU.
Json measured_choices(Device device);
/// Takes them from now on. False, and nothing happens, when they were made on another kind of device or for
/// another version of its libraries. Throws Error{input} for what measured_choices() does not give.
bool restore_choices(Device device, const Json& choices);

}  // namespace occam
