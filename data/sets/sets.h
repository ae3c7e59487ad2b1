#pragma once
// The data sets Occam reads. Files are checked before they are believed: sizes, magic numbers, label ranges.
#include <cstdint>
#include <string>

#include "data/dataset.h"
#include "data/image/decode.h"

namespace occam {

/// Fashion-MNIST: {train,t10k}-{images-idx3,labels-idx1}-ubyte, each plain or with .gz, in `root`. `train`
/// chooses the 60,000 training or the 10,000 test images; grey, 28 x 28. Throws Error{input}.
DatasetPtr open_fashion_mnist(const std::string& root, bool train);

/// An image file and a label file in idx form (https://yann.lecun.org/exdb/mnist/), plain or gzip, u8 with
/// one label byte an image. `class_names` bounds the labels. Throws Error{input} naming file and place.
DatasetPtr open_idx(const std::string& images, const std::string& labels,
                    std::vector<std::string> class_names);

/// CIFAR-10 or CIFAR-100 in the official binary layout (https://www.cs.toronto.edu/~kriz/cifar.html): `root`
/// or its subfolder cifar-10-batches-bin / cifar-100-binary holds data_batch_1.bin ... and test_batch.bin, or
/// train.bin and test.bin. CIFAR-100 uses the fine labels. Class names come from the meta files when present.
DatasetPtr open_cifar10(const std::string& root, bool train);
DatasetPtr open_cifar100(const std::string& root, bool train);

/// JPEG and PNG files (.jpg .jpeg .png, any case) below folder/<class>/, at any depth. Classes are the
/// subfolders in bytewise order of their names, images in bytewise order of their paths; names with a leading
/// dot are passed over. Throws Error{input} when there is no class or a class has no image.
DatasetPtr open_image_folder(const std::string& folder, const DecodeOptions& decode);

struct SyntheticOptions {
  int64_t images = 5000;
  int64_t classes = 10;
  int64_t size = 32;  // width and height
  int64_t channels = 3;
  uint64_t seed = 0;            // patterns of the classes
  std::string split = "train";  // keys the noise: equal classes, other images
};
/// Images made on the spot: a smooth pattern of the class, shifted in brightness and contrast, plus noise.
/// Image i has label i % classes. A linear classifier separates them.
DatasetPtr open_synthetic(const SyntheticOptions& options);

}  // namespace occam
