// Colors of palette indices.
#include <algorithm>
#include <cstdint>

#include "api.h"

namespace {

template <class Value>
void look_up(const Value* indices, std::int64_t count, std::int64_t first, const std::uint8_t* table,
             std::int64_t entries, std::uint8_t* out) {
  for (std::int64_t n = 0; n < count; ++n) {
    const std::int64_t entry = std::clamp<std::int64_t>(indices[n] - first, 0, entries - 1);
    for (int color = 0; color < 3; ++color) {
      out[color * count + n] = table[color * entries + entry];
    }
  }
}

}  // namespace

// Writes the colors (3, count) of indices of one type (0 to 3: uint8, int8, uint16, int16), those outside the table
// (3, entries), whose first entry is that of index `first`, taking its ends. Returns 1 for another type or no entries.
MEDIMG_API std::int32_t medimg_apply_palette(const void* indices, std::int32_t type, std::int64_t count,
                                             std::int64_t first, const std::uint8_t* table, std::int64_t entries,
                                             std::uint8_t* out) {
  if (entries < 1) {
    return 1;
  }
  switch (type) {
    case 0:
      look_up(static_cast<const std::uint8_t*>(indices), count, first, table, entries, out);
      return 0;
    case 1:
      look_up(static_cast<const std::int8_t*>(indices), count, first, table, entries, out);
      return 0;
    case 2:
      look_up(static_cast<const std::uint16_t*>(indices), count, first, table, entries, out);
      return 0;
    case 3:
      look_up(static_cast<const std::int16_t*>(indices), count, first, table, entries, out);
      return 0;
    default:
      return 1;
  }
}
