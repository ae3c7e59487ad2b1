#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "core/check.h"
#include "data/image/codec.h"

namespace {

// Memory that stb_image may use for one image: bounded, zeroed (it reads Huffman tables that a file never
// defined), and freed as a whole, so that leaving by an exception leaks nothing.
struct Arena {
  struct Block {
    Block *previous, *next;
    size_t bytes;
  };
  static constexpr size_t kHeader = (sizeof(Block) + 15) / 16 * 16;
  Block list{&list, &list, 0};
  size_t left;

  explicit Arena(size_t limit) : left(limit) { current = this; }
  ~Arena() {
    while (list.next != &list) release(data_of(list.next));
    current = nullptr;
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  static void* data_of(Block* block) { return reinterpret_cast<char*>(block) + kHeader; }
  static Block* block_of(void* data) { return reinterpret_cast<Block*>(static_cast<char*>(data) - kHeader); }

  void* take(size_t bytes) {
    if (bytes > left) return nullptr;
    auto* block = static_cast<Block*>(std::calloc(1, kHeader + bytes));
    if (!block) return nullptr;
    *block = {&list, list.next, bytes};
    block->next->previous = block;
    list.next = block;
    left -= bytes;
    return data_of(block);
  }
  void release(void* data) {
    if (!data) return;
    Block* block = block_of(data);
    block->previous->next = block->next;
    block->next->previous = block->previous;
    left += block->bytes;
    std::free(block);
  }
  void* grow(void* data, size_t bytes) {
    void* fresh = take(bytes);
    if (fresh && data) {
      size_t old = block_of(data)->bytes;
      std::memcpy(fresh, data, old < bytes ? old : bytes);
      release(data);
    }
    return fresh;
  }

  static thread_local Arena* current;
};
thread_local Arena* Arena::current = nullptr;

struct BrokenAssumption {};

}  // namespace

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_MALLOC(bytes) Arena::current->take(bytes)
#define STBI_REALLOC(data, bytes) Arena::current->grow(data, bytes)
#define STBI_FREE(data) Arena::current->release(data)
#define STBI_ASSERT(condition)                  \
  do {                                          \
    if (!(condition)) throw BrokenAssumption{}; \
  } while (false)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb_image.h>
#pragma GCC diagnostic pop

namespace occam::codec {

Image decode_stb(std::span<const uint8_t> bytes, const std::string& name, int channels, int64_t memory) {
  OCCAM_CHECK(bytes.size() < (size_t(1) << 31), ErrorKind::input,
              "{}: image file of {} bytes; stb_image reads less than 2 GiB", name, bytes.size());
  Arena arena{size_t(memory)};
  int width = 0, height = 0, in_file = 0;
  const uint8_t* pixels = nullptr;
  try {
    pixels = stbi_load_from_memory(bytes.data(), int(bytes.size()), &width, &height, &in_file, channels);
  } catch (const BrokenAssumption&) {
    fail(ErrorKind::input, name + ": the image data are corrupt");
  }
  OCCAM_CHECK(pixels, ErrorKind::input, "{}: cannot decode this image ({})", name, stbi_failure_reason());
  Image image(width, height, channels);
  std::memcpy(image.data(), pixels, size_t(image.size()));
  return image;
}

}  // namespace occam::codec
