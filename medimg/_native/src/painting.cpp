// Paints slices: stored values to intensity, resized with a triangle filter, normalized, into float32 images.
//
// The order of operations is fixed, each rounded to float32: values less black, clamped to the window, or looked up; masked;
// the weighted rows in the order of their weights; the weighted columns likewise; times the scale, clamped to
// 0 … 1; times one number plus another. No step depends on the processor or on the number of threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <exception>
#include <limits>
#include <vector>

#include "api.h"
#include "threads.h"
#include "vectors.h"

// Weights of one axis: those of result i are at ends[i] to ends[i + 1], for the inputs `index`.
struct MedimgTaps {
  const std::int32_t* index;
  const float* weights;
  const std::int32_t* ends;
  std::int64_t count;
};

// Where a slice is painted: the first pixel of a channel of an image, and what normalizes it.
struct MedimgTarget {
  float* image;
  float factor;
  float offset;
};

struct MedimgPainting {
  const void* values;
  const std::uint8_t* mask;       // nonzero for padding; null for none
  std::int64_t value_strides[3];  // of slices, rows, columns, in elements
  std::int64_t mask_strides[3];
  std::int64_t slices;
  std::int64_t rows;
  std::int64_t columns;
  std::int32_t type;  // see Type
  const float* curve;  // intensities of the values from `curve_start` on, of all of the type; null for a ramp
  std::int64_t curve_start;
  float black[2];  // of a ramp: subtracted one after the other
  float low;          // clamped to low … high then
  float high;
  float scale;
  float fill;  // of what is around the slice in an image, before it is normalized
  MedimgTaps row_taps;
  MedimgTaps column_taps;
  std::int64_t height;  // of an image
  std::int64_t width;
  std::int64_t top;  // of the slice in an image
  std::int64_t left;
  const MedimgTarget* targets;
  const std::int64_t* target_ends;  // (slices): those of slice n end at target_ends[n]
  std::int32_t has_finite;          // set where a value is finite, and where one is no padding
  std::int32_t has_unpadded;
};

namespace medimg {

namespace {

enum Type : std::int32_t { kUint8 = 0, kInt8 = 1, kUint16 = 2, kInt16 = 3, kInt32 = 4, kFloat32 = 5 };

struct Found {
  bool finite = false;
  bool unpadded = false;
};

template <class T>
MEDIMG_VECTORS void load_row(const T* from, std::int64_t stride, std::int64_t count, const float* black,
                             float low, float high, float* to) {
  const float first = black[0];
  const float second = black[1];
  if (stride == 1) {
    for (std::int64_t n = 0; n < count; ++n) {
      const float value = (static_cast<float>(from[n]) - first) - second;
      to[n] = std::min(std::max(value, low), high);
    }
    return;
  }
  for (std::int64_t n = 0; n < count; ++n) {
    const float value = (static_cast<float>(from[n * stride]) - first) - second;
    to[n] = std::min(std::max(value, low), high);
  }
}

template <class T>
void look_up_row(const T* from, std::int64_t stride, std::int64_t count, const float* curve, std::int64_t start,
                 float* to) {
  for (std::int64_t n = 0; n < count; ++n) {
    to[n] = curve[static_cast<std::int64_t>(from[n * stride]) - start];
  }
}

// Values that are not finite become black.
bool remove_infinite(const float* from, std::int64_t stride, std::int64_t count, float* to) {
  bool has_finite = false;
  for (std::int64_t n = 0; n < count; ++n) {
    if (std::isfinite(from[n * stride])) {
      has_finite = true;
    } else {
      to[n] = 0.0f;
    }
  }
  return has_finite;
}

// Padding becomes black.
bool remove_padding(const std::uint8_t* mask, std::int64_t stride, std::int64_t count, float* to) {
  bool has_unpadded = false;
  for (std::int64_t n = 0; n < count; ++n) {
    if (mask[n * stride] != 0) {
      to[n] = 0.0f;
    } else {
      has_unpadded = true;
    }
  }
  return has_unpadded;
}

MEDIMG_VECTORS void scale_row(const float* row, float weight, std::int64_t count, float* sum) {
  for (std::int64_t n = 0; n < count; ++n) {
    sum[n] = row[n] * weight;
  }
}

MEDIMG_VECTORS void add_row(const float* row, float weight, std::int64_t count, float* sum) {
  for (std::int64_t n = 0; n < count; ++n) {
    sum[n] = sum[n] + row[n] * weight;
  }
}

// Rows of a result that are combined at once, as the lanes of vectors.
constexpr std::int64_t kLanes = 8;

// Writes kLanes rows, `count` long, one after the other, as columns of lanes.
MEDIMG_VECTORS void interleave(const float* rows, std::int64_t count, float* columns) {
  for (std::int64_t n = 0; n < count; ++n) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      columns[n * kLanes + lane] = rows[lane * count + n];
    }
  }
}

// Combines weighted columns of lanes; writes kLanes rows, one after the other.
MEDIMG_VECTORS void combine_columns(const float* columns, const MedimgTaps& taps, float* rows) {
  for (std::int64_t c = 0; c < taps.count; ++c) {
    std::int32_t k = taps.ends[c];
    float total[kLanes];
    const float* column = columns + taps.index[k] * kLanes;
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      total[lane] = column[lane] * taps.weights[k];
    }
    for (++k; k < taps.ends[c + 1]; ++k) {
      column = columns + taps.index[k] * kLanes;
      for (std::int64_t lane = 0; lane < kLanes; ++lane) {
        total[lane] = total[lane] + column[lane] * taps.weights[k];
      }
    }
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      rows[lane * taps.count + c] = total[lane];
    }
  }
}

MEDIMG_VECTORS void finish_row(const float* row, float scale, std::int64_t count, float* image) {
  for (std::int64_t n = 0; n < count; ++n) {
    image[n] = std::min(std::max(row[n] * scale, 0.0f), 1.0f);
  }
}

MEDIMG_VECTORS void normalize_row(const float* image, float factor, float offset, std::int64_t count,
                                  float* to) {
  for (std::int64_t n = 0; n < count; ++n) {
    to[n] = image[n] * factor + offset;
  }
}

// Paints parts of slices in one thread.
class Painter {
 public:
  explicit Painter(const MedimgPainting& painting) : p_(painting) {
    const auto& taps = p_.row_taps;
    for (std::int64_t r = 0; r < taps.count; ++r) {
      const auto [low, high] = std::minmax_element(taps.index + taps.ends[r], taps.index + taps.ends[r + 1]);
      held_ = std::max<std::int64_t>(held_, *high - *low + 1);
    }
    lines_.resize(static_cast<std::size_t>(held_ * p_.columns));
    owners_.resize(static_cast<std::size_t>(held_));
    sums_.resize(static_cast<std::size_t>(kLanes * p_.columns));
    columns_.resize(static_cast<std::size_t>(kLanes * p_.columns));
    rows_.resize(static_cast<std::size_t>(kLanes * p_.column_taps.count));
    image_.resize(static_cast<std::size_t>(p_.width));
  }

  Found found;

  // Paints rows `first` to `last` of the images of a slice.
  void paint(std::int64_t slice, std::int64_t first, std::int64_t last) {
    std::fill(owners_.begin(), owners_.end(), -1);
    const std::int64_t start = slice == 0 ? 0 : p_.target_ends[slice - 1];
    std::int64_t ready = 0;  // results before it are in rows_
    for (std::int64_t y = first; y < last; ++y) {
      const std::int64_t r = y - p_.top;
      std::fill(image_.begin(), image_.end(), p_.fill);
      if (r >= 0 && r < p_.row_taps.count) {
        if (r >= ready) {
          begin_ = r;
          ready = std::min({r + kLanes, last - p_.top, p_.row_taps.count});
          resize_rows(slice, r, ready);
        }
        const std::int64_t count = p_.column_taps.count;
        finish_row(rows_.data() + (r - begin_) * count, p_.scale, count, image_.data() + p_.left);
      }
      for (std::int64_t t = start; t < p_.target_ends[slice]; ++t) {
        const MedimgTarget& target = p_.targets[t];
        normalize_row(image_.data(), target.factor, target.offset, p_.width, target.image + y * p_.width);
      }
    }
  }

 private:
  void resize_rows(std::int64_t slice, std::int64_t first, std::int64_t last) {
    const MedimgTaps& rows = p_.row_taps;
    for (std::int64_t r = first; r < last; ++r) {
      float* sum = sums_.data() + (r - first) * p_.columns;
      std::int32_t k = rows.ends[r];
      scale_row(get_line(slice, rows.index[k]), rows.weights[k], p_.columns, sum);
      for (++k; k < rows.ends[r + 1]; ++k) {
        add_row(get_line(slice, rows.index[k]), rows.weights[k], p_.columns, sum);
      }
    }
    interleave(sums_.data(), p_.columns, columns_.data());
    combine_columns(columns_.data(), p_.column_taps, rows_.data());
  }

  // Returns the intensities of a row of a slice, which are held for the next results.
  const float* get_line(std::int64_t slice, std::int64_t row) {
    const auto slot = static_cast<std::size_t>(row % held_);
    float* line = lines_.data() + slot * static_cast<std::size_t>(p_.columns);
    if (owners_[slot] != row) {
      owners_[slot] = row;
      load(slice, row, line);
    }
    return line;
  }

  template <class T>
  void load_as(std::int64_t at, float* line) {
    const T* from = static_cast<const T*>(p_.values) + at;
    if constexpr (sizeof(T) <= 2) {
      if (p_.curve != nullptr) {
        look_up_row(from, p_.value_strides[2], p_.columns, p_.curve, p_.curve_start, line);
        return;
      }
    }
    load_row(from, p_.value_strides[2], p_.columns, p_.black, p_.low, p_.high, line);
  }

  void load(std::int64_t slice, std::int64_t row, float* line) {
    const std::int64_t at = slice * p_.value_strides[0] + row * p_.value_strides[1];
    switch (p_.type) {
      case kUint8:
        load_as<std::uint8_t>(at, line);
        break;
      case kInt8:
        load_as<std::int8_t>(at, line);
        break;
      case kUint16:
        load_as<std::uint16_t>(at, line);
        break;
      case kInt16:
        load_as<std::int16_t>(at, line);
        break;
      case kInt32:
        load_as<std::int32_t>(at, line);
        break;
      default:
        load_as<float>(at, line);
        break;
    }
    if (p_.type == kFloat32) {
      const float* from = static_cast<const float*>(p_.values) + at;
      found.finite |= remove_infinite(from, p_.value_strides[2], p_.columns, line);
    } else {
      found.finite = true;
    }
    if (p_.mask == nullptr) {
      found.unpadded = true;
    } else {
      const std::uint8_t* mask = p_.mask + slice * p_.mask_strides[0] + row * p_.mask_strides[1];
      found.unpadded |= remove_padding(mask, p_.mask_strides[2], p_.columns, line);
    }
  }

  const MedimgPainting& p_;
  std::int64_t held_ = 1;
  std::vector<float> lines_;           // of source rows, row r in slot r % held_
  std::vector<std::int64_t> owners_;   // rows in the slots
  std::vector<float> sums_;            // of weighted rows, for kLanes results
  std::vector<float> columns_;         // the same, as columns of lanes
  std::vector<float> rows_;            // kLanes results, from result begin_ on
  std::int64_t begin_ = 0;
  std::vector<float> image_;
};

void paint(MedimgPainting& painting, std::int64_t threads) {
  // slices are shared out whole, or in bands of rows if there are few
  const std::int64_t wanted = 2 * threads;
  std::int64_t bands = painting.slices >= wanted ? 1 : (wanted + painting.slices - 1) / painting.slices;
  bands = threads == 1 ? 1 : std::min(bands, painting.height);
  const std::int64_t parts = painting.slices * bands;
  threads = std::max<std::int64_t>(1, std::min(threads, parts));
  std::vector<Painter> painters;
  for (std::int64_t n = 0; n < threads; ++n) {
    painters.emplace_back(painting);
  }
  std::atomic<std::int64_t> next{0};
  run_in_threads(threads, [&](std::int64_t number) {
    Painter& painter = painters[static_cast<std::size_t>(number)];
    for (std::int64_t part = next++; part < parts; part = next++) {
      const std::int64_t band = part % bands;
      painter.paint(part / bands, band * painting.height / bands, (band + 1) * painting.height / bands);
    }
  });
  for (const Painter& painter : painters) {
    painting.has_finite |= painter.found.finite;
    painting.has_unpadded |= painter.found.unpadded;
  }
}

}  // namespace

}  // namespace medimg

// Paints all slices; 0, or -1 if memory is short.
MEDIMG_API std::int32_t medimg_paint(MedimgPainting* painting, std::int64_t threads) {
  try {
    medimg::paint(*painting, threads);
    return 0;
  } catch (const std::exception&) {
    return -1;
  }
}
