#if OCCAM_LIBJPEG
#include <csetjmp>
#include <cstdio>

#include <jpeglib.h>
// jerror.h needs the types above.
#include <jerror.h>

#include "core/check.h"
#include "data/image/codec.h"

namespace occam::codec {

namespace {

struct ErrorManager {
  jpeg_error_mgr base;  // first, so that libjpeg's pointer to it is a pointer to this
  std::jmp_buf give_up;
  char text[JMSG_LENGTH_MAX];
};

[[noreturn]] void on_error(j_common_ptr info) {
  auto* errors = reinterpret_cast<ErrorManager*>(info->err);
  errors->base.format_message(info, errors->text);
  std::longjmp(errors->give_up, 1);
}

void on_message(j_common_ptr info, int level) {
  if (level >= 0) return;  // a trace message
  ++info->err->num_warnings;
  if (info->err->msg_code == JWRN_JPEG_EOF) on_error(info);
}

/// Everything that must survive a longjmp lives here, outside the function that calls setjmp.
struct Reader {
  ErrorManager errors{};
  jpeg_decompress_struct info{};
  Image image;
  std::vector<uint8_t> row;

  Reader() {
    info.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = on_error;
    errors.base.emit_message = on_message;
  }
  ~Reader() { jpeg_destroy_decompress(&info); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  bool start(std::span<const uint8_t> bytes, int64_t memory);
  bool read_rows();
};

/// CMYK as Adobe stores it (0 is full ink) to RGB with Pillow's rounding of c * k / 255.
void cmyk_to_rgb(const uint8_t* in, uint8_t* out, int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i)
    for (int c = 0; c < 3; ++c) {
      uint32_t product = uint32_t(255 - in[4 * i + c]) * in[4 * i + 3] + 128;
      out[3 * i + c] = uint8_t(in[4 * i + 3] - (((product >> 8) + product) >> 8));
    }
}

bool Reader::start(std::span<const uint8_t> bytes, int64_t memory) {
  if (setjmp(errors.give_up)) return false;
  jpeg_create_decompress(&info);
  info.mem->max_memory_to_use = long(memory);
  jpeg_mem_src(&info, bytes.data(), static_cast<unsigned long>(bytes.size()));
  jpeg_read_header(&info, TRUE);
  if (info.jpeg_color_space == JCS_GRAYSCALE)
    info.out_color_space = JCS_GRAYSCALE;
  else if (info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK)
    info.out_color_space = JCS_CMYK;
  else
    info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  return true;
}

bool Reader::read_rows() {
  if (setjmp(errors.give_up)) return false;
  while (info.output_scanline < info.output_height) {
    uint8_t* to = image.row(info.output_scanline);
    JSAMPROW target = row.empty() ? to : row.data();
    if (jpeg_read_scanlines(&info, &target, 1) != 1) return false;
    if (!row.empty()) cmyk_to_rgb(row.data(), to, image.width());
  }
  jpeg_finish_decompress(&info);  // reads on to the end marker
  return true;
}

}  // namespace

Image decode_libjpeg(std::span<const uint8_t> bytes, const std::string& name, int64_t memory,
                     int64_t& warnings) {
  Reader reader;
  bool ok = reader.start(bytes, memory);
  if (ok) {
    int64_t width = reader.info.output_width, components = reader.info.output_components;
    reader.image = Image(width, reader.info.output_height, components == 1 ? 1 : 3);
    if (components == 4) reader.row.resize(size_t(width * 4));
    ok = reader.read_rows();
  }
  OCCAM_CHECK(ok, ErrorKind::input, "{}: cannot decode this JPEG file ({})", name, reader.errors.text);
  warnings = reader.errors.base.num_warnings;
  return std::move(reader.image);
}

}  // namespace occam::codec
#endif
