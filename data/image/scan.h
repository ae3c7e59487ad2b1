#pragma once
// Private to data/image: what a JPEG or PNG file claims, read without decoding, so that lies are refused
// before a decoder sees them. stb_image 2.27 trusts Huffman counts and ignores checksums; neither may reach
// it unchecked.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace occam::codec {

struct JpegHeader {
  int64_t width = 0, height = 0;
  int components = 0, precision = 0;
  int sof = 0;              // marker of the first frame header, 0xC0 ... 0xCF
  int64_t scans = 0;        // SOS markers
  bool ends = false;        // an EOI marker was reached
  bool bad_tables = false;  // a Huffman table states more codes than fit
  bool arithmetic() const { return sof >= 0xC9; }
};

/// Walks the markers from SOI to EOI or the end of the bytes. Never throws on bad data: absent facts stay
/// zero.
JpegHeader scan_jpeg(std::span<const uint8_t> bytes);

struct PngHeader {
  int64_t width = 0, height = 0;
  int depth = 0, colour = 0;
  bool interlaced = false;
  int channels_out() const { return colour == 0 || colour == 4 ? 1 : 3; }
};

/// The header chunk alone. Throws Error{input}.
PngHeader read_png_header(std::span<const uint8_t> bytes, const std::string& name);

/// Checks lengths, order and checksums of the chunks that matter and that the compressed data can hold the
/// picture (deflate reaches at most 1032:1). Returns a file of IHDR, PLTE (padded to 256 entries), IDAT and
/// IEND only. Throws Error{input}.
std::vector<uint8_t> checked_png(std::span<const uint8_t> bytes, const PngHeader& header,
                                 const std::string& name);

}  // namespace occam::codec
