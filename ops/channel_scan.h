#pragma once
// For the op.cpp of scans with states of channels.
#include "core/check.h"
#include "ops/ragged.h"
#include "ops/scan.h"

namespace occam {

/// Tokens x [b,t,...] with `channels` of `states` each. Throws Error{shape} when the channels are no multiple
/// of `heads` or there are no states or more than `most`.
inline kernels::ChannelScanShape channel_scan_shape(const char* op, const Shape& x, int64_t channels,
                                                    int64_t states, int64_t most, int64_t heads,
                                                    const Tensor& offsets, int64_t longest) {
  OCCAM_CHECK(heads > 0 && channels % heads == 0, ErrorKind::shape,
              "{}: {} channels do not divide into {} heads", op, channels, heads);
  OCCAM_CHECK(states > 0 && states <= most, ErrorKind::shape, "{}: {} states a channel; 1 to {} are possible",
              op, states, most);
  return {rows_of(x, offsets, longest), channels, states, channels / heads};
}

}  // namespace occam
