#pragma once
// Labelled images by index, and the ways to take parts of them.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/image/image.h"

namespace occam {

struct Sample {
  Image image;
  int64_t label = 0;  // [0, classes)
};

class PixelStores;  // data/render/store.h
std::shared_ptr<PixelStores> make_pixel_stores();

/// Images in a fixed order. Every function is const and safe to call from several threads.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  /// One name a class; the index is the label.
  virtual const std::vector<std::string>& class_names() const = 0;
  int64_t classes() const { return int64_t(class_names().size()); }
  /// 1 or 3: the channels of the set. A picture in a folder may have fewer and is then expanded by the
  /// transform.
  virtual int64_t channels() const = 0;
  /// The label without decoding the image.
  virtual int64_t label(int64_t index) const = 0;
  /// Throws Error{input} naming the file when the image cannot be decoded.
  virtual Sample get(int64_t index) const = 0;
  /// The image's file, or file and position ("train-images-idx3-ubyte.gz[17]"), for messages.
  virtual std::string path(int64_t index) const = 0;
  /// Width and height that every picture is known to have, as a Rect at the origin; empty when they may
  /// differ.
  virtual Rect common_size() const { return {}; }
  /// What loaders keep of this set for as long as it lives.
  PixelStores& stores() const { return *stores_; }

 private:
  std::shared_ptr<PixelStores> stores_ = make_pixel_stores();
};

using DatasetPtr = std::shared_ptr<const Dataset>;

/// The images `indices` of `base`, in that order. Throws Error{usage} when one is out of range.
DatasetPtr subset(DatasetPtr base, std::vector<int64_t> indices);

enum class LimitOrder : uint8_t { stratified, sequential };

/// At most `count` images. `sequential` takes the first ones; `stratified` draws from every class in
/// proportion to its size (largest remainders, ties to the lower class), the images of a class by a seeded
/// shuffle, and keeps the order of `base`. count <= 0 or >= size gives `base` itself.
DatasetPtr limit(DatasetPtr base, int64_t count, LimitOrder order, uint64_t seed);

struct HoldoutSplit {
  DatasetPtr rest, held;
};
/// Splits `base` into complementary parts, both in its order, class by class as `limit` does. `amount` below
/// 1 is a fraction, else a count. Throws Error{usage} unless both parts get an image.
HoldoutSplit holdout_split(DatasetPtr base, double amount, uint64_t seed);

/// Compares a data set with a head of `head_classes` outputs. Throws Error{input} when the data have more
/// classes; returns a warning when they have fewer, else "".
std::string check_head(const Dataset& data, int64_t head_classes);

}  // namespace occam
