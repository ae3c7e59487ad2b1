#include "data/image/decode.h"

#include "core/check.h"
#include "core/io/mmap.h"
#include "data/image/codec.h"
#include "data/image/scan.h"

namespace occam {

namespace {

bool is_jpeg(std::span<const uint8_t> b) {
  return b.size() >= 3 && b[0] == 0xFF && b[1] == 0xD8 && b[2] == 0xFF;
}

bool is_png(std::span<const uint8_t> b) {
  constexpr uint8_t kSignature[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
  return b.size() >= 8 && std::equal(kSignature, kSignature + 8, b.begin());
}

ImageInfo info_of(const codec::JpegHeader& header, const std::string& name) {
  OCCAM_CHECK(header.sof != 0, ErrorKind::input,
              "{}: JPEG file without a frame header; it is cut short or corrupt", name);
  OCCAM_CHECK(header.width > 0 && header.height > 0, ErrorKind::input,
              "{}: JPEG header states {} x {} pixels", name, header.width, header.height);
  bool lossless = header.sof == 0xC3 || header.sof == 0xC7 || header.sof == 0xCB || header.sof == 0xCF;
  OCCAM_CHECK(header.precision == 8 && !lossless, ErrorKind::input,
              "{}: {}-bit{} JPEG is not supported; convert it to 8-bit baseline or progressive", name,
              header.precision, lossless ? " lossless" : "");
  OCCAM_CHECK(header.components == 1 || header.components == 3 || header.components == 4, ErrorKind::input,
              "{}: JPEG with {} components; 1, 3 or 4 are supported", name, header.components);
  return {header.width, header.height, header.components == 1 ? 1 : 3, true};
}

void check_pixels(const ImageInfo& info, const std::string& name, int64_t limit) {
  OCCAM_CHECK(info.width <= limit / info.height, ErrorKind::input,
              "{}: {} x {} pixels are more than the limit of {}; raise data.max_pixels if you trust the file",
              name, info.width, info.height, limit);
}

/// Working memory a decoder may take: whole-image coefficients or 16-bit samples several times over.
int64_t memory_limit(const ImageInfo& info, size_t bytes) {
  int64_t padded = (info.width + 32) * (info.height + 32);
  return (int64_t(4) << 20) + 8 * int64_t(bytes) + 32 * padded;
}

Image decode_jpeg(std::span<const uint8_t> bytes, const std::string& name, const DecodeOptions& options,
                  int64_t* warnings) {
  codec::JpegHeader header = codec::scan_jpeg(bytes);
  ImageInfo info = info_of(header, name);
  check_pixels(info, name, options.max_pixels);
  // A Huffman-coded 8x8 block takes a bit or more in some scan of its component.
  OCCAM_CHECK(header.arithmetic() || info.width * info.height / 512 <= int64_t(bytes.size()) + 64,
              ErrorKind::input, "{}: {} bytes cannot hold the {} x {} pixels that the JPEG header states",
              name, bytes.size(), info.width, info.height);
  constexpr int64_t kMaxScans = 500;  // encoders write tens; each costs a pass over the picture
  OCCAM_CHECK(header.scans <= kMaxScans, ErrorKind::input, "{}: JPEG with {} scans; at most {} are read",
              name, header.scans, kMaxScans);
  int64_t memory = memory_limit(info, bytes.size());
#if OCCAM_LIBJPEG
  if (options.jpeg != JpegDecoder::stb) {
    int64_t count = 0;
    Image image = codec::decode_libjpeg(bytes, name, memory, count);
    if (warnings) *warnings = count;
    return image;
  }
#endif
  OCCAM_CHECK(options.jpeg != JpegDecoder::libjpeg, ErrorKind::usage,
              "this build has no libjpeg-turbo; use data.decoder=stb or install libjpeg-dev and build again");
  OCCAM_CHECK(header.ends, ErrorKind::input,
              "{}: JPEG file of {} bytes ends without its end marker; it was cut short", name, bytes.size());
  OCCAM_CHECK(!header.bad_tables, ErrorKind::input, "{}: JPEG file has a corrupt Huffman table", name);
  OCCAM_CHECK(!header.arithmetic(), ErrorKind::input,
              "{}: stb_image does not read arithmetic-coded JPEG; use data.decoder=libjpeg", name);
  return codec::decode_stb(bytes, name, int(info.channels), memory);
}

}  // namespace

bool has_libjpeg() {
#if OCCAM_LIBJPEG
  return true;
#else
  return false;
#endif
}

ImageInfo image_info(std::span<const uint8_t> bytes, const std::string& name) {
  if (is_jpeg(bytes)) return info_of(codec::scan_jpeg(bytes), name);
  OCCAM_CHECK(is_png(bytes), ErrorKind::input, "{}: {}", name,
              bytes.empty() ? "the image file is empty" : "neither a JPEG nor a PNG file by its first bytes");
  codec::PngHeader header = codec::read_png_header(bytes, name);
  return {header.width, header.height, header.channels_out(), false};
}

Image decode_image(std::span<const uint8_t> bytes, const std::string& name, const DecodeOptions& options,
                   int64_t* warnings) {
  if (warnings) *warnings = 0;
  if (is_jpeg(bytes)) return decode_jpeg(bytes, name, options, warnings);
  ImageInfo info = image_info(bytes, name);
  check_pixels(info, name, options.max_pixels);
  std::vector<uint8_t> clean = codec::checked_png(bytes, codec::read_png_header(bytes, name), name);
  return codec::decode_stb(clean, name, int(info.channels), memory_limit(info, bytes.size()));
}

Image decode_image_file(const std::string& path, const DecodeOptions& options, int64_t* warnings) {
  MappedFile file(path);
  auto* data = reinterpret_cast<const uint8_t*>(file.data());
  return decode_image({data, file.size()}, path, options, warnings);
}

}  // namespace occam
