#include "data/render/store.h"

#include "data/dataset.h"

namespace occam {

PixelStore::PixelStore(int64_t images, int64_t row_bytes, Device device)
    : pixels(empty({images, row_bytes}, {DType::u8, device})),
      present(std::make_unique<std::atomic<bool>[]>(size_t(images))),
      filled_on(current_stream(device)) {}

std::shared_ptr<PixelStore> PixelStores::find(const std::string& key) {
  std::lock_guard lock(mutex_);
  auto it = stores_.find(key);
  return it == stores_.end() ? nullptr : it->second;
}

std::shared_ptr<PixelStore> PixelStores::make(const std::string& key, int64_t images, int64_t row_bytes,
                                              Device device) {
  std::lock_guard lock(mutex_);
  std::shared_ptr<PixelStore>& store = stores_[key];
  if (!store) store = std::make_shared<PixelStore>(images, row_bytes, device);
  return store;
}

int64_t PixelStores::count_pass(const std::string& key) {
  std::lock_guard lock(mutex_);
  return passes_[key]++;
}

std::shared_ptr<PixelStores> make_pixel_stores() { return std::make_shared<PixelStores>(); }

}  // namespace occam
