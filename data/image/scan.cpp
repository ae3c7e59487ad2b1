#include "data/image/scan.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "core/check.h"

namespace occam::codec {

namespace {

constexpr uint32_t tag(const char (&name)[5]) {
  return uint32_t(uint8_t(name[0])) << 24 | uint32_t(uint8_t(name[1])) << 16 |
         uint32_t(uint8_t(name[2])) << 8 | uint32_t(uint8_t(name[3]));
}
uint32_t be16(const uint8_t* p) { return uint32_t(p[0]) << 8 | p[1]; }
uint32_t be32(const uint8_t* p) { return be16(p) << 16 | be16(p + 2); }

/// True when every table of a DHT payload is whole and has at most 256 codes.
bool huffman_tables_fit(std::span<const uint8_t> payload) {
  while (!payload.empty()) {
    if (payload.size() < 17) return false;
    size_t codes = 0;
    for (size_t i = 1; i <= 16; ++i) codes += payload[i];
    if (codes > 256 || payload.size() < 17 + codes) return false;
    payload = payload.subspan(17 + codes);
  }
  return true;
}

bool is_frame_header(int marker) {
  return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

/// Bytes the filters and samples of one pass take before compression.
int64_t raw_bytes(int64_t width, int64_t height, int64_t bits) {
  return width == 0 || height == 0 ? 0 : height * (1 + (width * bits + 7) / 8);
}

int64_t raw_bytes(const PngHeader& h) {
  int samples = h.colour == 2 ? 3 : h.colour == 4 ? 2 : h.colour == 6 ? 4 : 1;
  int64_t bits = int64_t(samples) * h.depth;
  if (!h.interlaced) return raw_bytes(h.width, h.height, bits);
  constexpr int kStartX[] = {0, 4, 0, 2, 0, 1, 0}, kStartY[] = {0, 0, 4, 0, 2, 0, 1};
  constexpr int kStepX[] = {8, 8, 4, 4, 2, 2, 1}, kStepY[] = {8, 8, 8, 4, 4, 2, 2};
  int64_t sum = 0;
  for (int pass = 0; pass < 7; ++pass)
    sum += raw_bytes((h.width - kStartX[pass] + kStepX[pass] - 1) / kStepX[pass],
                     (h.height - kStartY[pass] + kStepY[pass] - 1) / kStepY[pass], bits);
  return sum;
}

constexpr size_t kSignature = 8, kChunkExtra = 12;  // length, type and checksum round a chunk's data

void append_chunk(std::vector<uint8_t>& out, uint32_t type, std::span<const uint8_t> data) {
  auto put = [&](uint32_t v) {
    for (int shift = 24; shift >= 0; shift -= 8) out.push_back(uint8_t(v >> shift));
  };
  put(uint32_t(data.size()));
  put(type);
  out.insert(out.end(), data.begin(), data.end());
  put(0);  // stb_image skips checksums
}

}  // namespace

JpegHeader scan_jpeg(std::span<const uint8_t> bytes) {
  JpegHeader header;
  size_t at = 2;
  while (at < bytes.size()) {
    const void* found = std::memchr(bytes.data() + at, 0xFF, bytes.size() - at);
    if (!found) break;
    at = size_t(static_cast<const uint8_t*>(found) - bytes.data());
    while (at < bytes.size() && bytes[at] == 0xFF) ++at;
    if (at >= bytes.size()) break;
    int marker = bytes[at++];
    if (marker == 0 || marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) continue;
    if (marker == 0xD9) {
      header.ends = true;
      break;
    }
    if (bytes.size() - at < 2) break;
    size_t length = be16(bytes.data() + at);
    if (length < 2 || length > bytes.size() - at) {
      if (marker == 0xC4) header.bad_tables = true;
      if (length >= 2) break;
      at += 2;  // libjpeg takes a length of 0 or 1 as an empty segment
      continue;
    }
    std::span<const uint8_t> payload = bytes.subspan(at + 2, length - 2);
    if (marker == 0xC4 && !huffman_tables_fit(payload)) header.bad_tables = true;
    if (marker == 0xDA) ++header.scans;
    if (is_frame_header(marker) && header.sof == 0 && payload.size() >= 6) {
      header.sof = marker;
      header.precision = payload[0];
      header.height = be16(payload.data() + 1);
      header.width = be16(payload.data() + 3);
      header.components = payload[5];
    }
    at += length;
  }
  return header;
}

PngHeader read_png_header(std::span<const uint8_t> bytes, const std::string& name) {
  constexpr size_t kLength = 13;
  const uint8_t* chunk = bytes.data() + kSignature;
  OCCAM_CHECK(bytes.size() >= kSignature + kChunkExtra + kLength, ErrorKind::input,
              "{}: PNG file of only {} bytes ends inside its header", name, bytes.size());
  OCCAM_CHECK(be32(chunk) == kLength && be32(chunk + 4) == tag("IHDR"), ErrorKind::input,
              "{}: PNG file does not start with a 13-byte IHDR chunk", name);
  const uint8_t* d = chunk + 8;
  PngHeader h{be32(d), be32(d + 4), d[8], d[9], d[12] == 1};
  OCCAM_CHECK(h.width >= 1 && h.height >= 1, ErrorKind::input, "{}: PNG header states {} x {} pixels", name,
              h.width, h.height);
  bool small = h.depth == 1 || h.depth == 2 || h.depth == 4, byte = h.depth == 8, wide = h.depth == 16;
  bool known = h.colour == 0                                     ? small || byte || wide
               : h.colour == 3                                   ? small || byte
               : h.colour == 2 || h.colour == 4 || h.colour == 6 ? byte || wide
                                                                 : false;
  OCCAM_CHECK(known && d[10] == 0 && d[11] == 0 && d[12] <= 1, ErrorKind::input,
              "{}: PNG header states colour type {}, {} bits, compression {}, filter {}, interlace {}, "
              "which is no valid combination",
              name, h.colour, h.depth, d[10], d[11], d[12]);
  return h;
}

std::vector<uint8_t> checked_png(std::span<const uint8_t> bytes, const PngHeader& header,
                                 const std::string& name) {
  std::vector<uint8_t> out(bytes.begin(), bytes.begin() + kSignature);
  out.reserve(bytes.size() + 1024);
  int64_t compressed = 0;
  bool palette = false, ended = false;
  for (size_t at = kSignature; !ended;) {
    OCCAM_CHECK(bytes.size() - at >= kChunkExtra, ErrorKind::input,
                "{}: PNG file ends at byte {} without its IEND chunk; it was cut short", name, bytes.size());
    size_t length = be32(bytes.data() + at);
    uint32_t type = be32(bytes.data() + at + 4);
    std::string label(reinterpret_cast<const char*>(bytes.data() + at + 4), 4);
    for (char& c : label)
      if (c < ' ' || c > '~') c = '?';
    OCCAM_CHECK(
        length <= bytes.size() - at - kChunkExtra, ErrorKind::input,
        "{}: PNG chunk {} at byte {} states {} bytes, {} are left; the file was cut short or is corrupt",
        name, label, at, length, bytes.size() - at - kChunkExtra);
    std::span<const uint8_t> data = bytes.subspan(at + 8, length);
    bool critical = (type & (1u << 29)) == 0;
    if (critical) {
      uint32_t stored = be32(data.data() + length);
      auto crc = uint32_t(crc32(0, bytes.data() + at + 4, uInt(length + 4)));
      OCCAM_CHECK(crc == stored, ErrorKind::input,
                  "{}: PNG chunk {} at byte {} has checksum {:08x}, its data {:08x}; the file is corrupt",
                  name, label, at, stored, crc);
      OCCAM_CHECK(type != tag("IHDR") || at == kSignature, ErrorKind::input,
                  "{}: PNG file has a second IHDR chunk at byte {}", name, at);
      if (type == tag("IHDR")) {
        append_chunk(out, type, data);
      } else if (type == tag("PLTE")) {
        OCCAM_CHECK(
            length % 3 == 0 && length >= 3 && length <= 768 && !palette && compressed == 0, ErrorKind::input,
            "{}: PNG palette of {} bytes at byte {} is misplaced or has a wrong size", name, length, at);
        palette = true;
        if (header.colour == 3) {
          std::vector<uint8_t> full(data.begin(), data.end());
          full.resize(768);
          append_chunk(out, type, full);
        }
      } else if (type == tag("IDAT")) {
        compressed += int64_t(length);
        append_chunk(out, type, data);
      } else if (type == tag("IEND")) {
        ended = true;
        append_chunk(out, type, {});
      } else {
        fail(ErrorKind::input,
             fmt::format("{}: PNG chunk {} at byte {} is of an unknown critical kind", name, label, at));
      }
    }
    at += length + kChunkExtra;
  }
  OCCAM_CHECK(header.colour != 3 || palette, ErrorKind::input,
              "{}: PNG file with palette colour has no palette", name);
  OCCAM_CHECK(raw_bytes(header) <= 1032 * compressed + 1032, ErrorKind::input,
              "{}: {} compressed bytes cannot hold the {} x {} pixels that the PNG header states", name,
              compressed, header.width, header.height);
  return out;
}

}  // namespace occam::codec
