#include "header_values.h"

#include <cstddef>
#include <cstdint>

namespace medimg {

namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Takes characters from the front of a value.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  bool is_at_end() const { return at_ == text_.size(); }

  bool take(char wanted) {
    const bool is_there = peek() == wanted && !is_at_end();
    at_ += is_there ? 1 : 0;
    return is_there;
  }

  bool take_sign() { return take('+') || take('-'); }

  void skip_spaces() {
    while (take(' ')) {
    }
  }

  std::size_t count_digits() const {
    std::size_t end = at_;
    while (end < text_.size() && is_digit(text_[end])) {
      ++end;
    }
    return end - at_;
  }

  // Takes so many digits, which must be there.
  int take_number(std::size_t digits) {
    int number = 0;
    for (; digits > 0; --digits) {
      number = 10 * number + (text_[at_++] - '0');
    }
    return number;
  }

  void skip(std::size_t count) { at_ += count; }

 private:
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  std::string_view text_;
  std::size_t at_ = 0;
};

bool is_end(Reader& reader) {
  reader.skip_spaces();
  return reader.is_at_end();
}

bool is_identifier(std::string_view value) {
  constexpr std::size_t kLongest = 64;
  if (value.size() > kLongest) {
    return false;
  }
  for (const char c : value) {
    const bool is_letter = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    if (!is_digit(c) && !is_letter && c != '.' && c != '_' && c != '-') {
      return false;
    }
  }
  return true;
}

bool is_whole_number(std::string_view value) {
  constexpr std::size_t kMostDigits = 9;
  Reader reader(value);
  reader.skip_spaces();
  reader.take_sign();
  const std::size_t digits = reader.count_digits();
  if (digits == 0 || digits > kMostDigits) {
    return false;
  }
  reader.skip(digits);
  return is_end(reader);
}

// Digits of a number, and the power of ten that they are multiplied by.
struct Decimal {
  std::uint64_t digits = 0;
  int power = 0;
  bool is_negative = false;
};

// Adds digits; false if they are more than a double holds exactly.
bool take_digits(Reader& reader, std::size_t count, Decimal& number) {
  constexpr std::uint64_t kExact = std::uint64_t{1} << 53;
  for (; count > 0; --count) {
    number.digits = 10 * number.digits + static_cast<std::uint64_t>(reader.take_number(1));
    if (number.digits > kExact) {
      return false;
    }
  }
  return true;
}

bool read_decimal(Reader& reader, Decimal& number) {
  constexpr std::size_t kMostWhole = 9;
  constexpr std::size_t kMostDecimals = 14;
  reader.skip_spaces();
  number.is_negative = reader.take('-');
  if (!number.is_negative) {
    reader.take('+');
  }
  const std::size_t whole = reader.count_digits();
  if (whole == 0 || whole > kMostWhole || !take_digits(reader, whole, number)) {
    return false;
  }
  if (reader.take('.')) {
    const std::size_t decimals = reader.count_digits();
    if (decimals > kMostDecimals || !take_digits(reader, decimals, number)) {
      return false;
    }
    number.power = -static_cast<int>(decimals);
  }
  if (reader.take('e') || reader.take('E')) {
    const bool is_negative = reader.take('-');
    if (!is_negative) {
      reader.take('+');
    }
    const std::size_t digits = reader.count_digits();
    if (digits == 0 || digits > 2) {
      return false;
    }
    const int power = reader.take_number(digits);
    number.power += is_negative ? -power : power;
  }
  reader.skip_spaces();
  return true;
}

// Both factors are exact, so that the result is rounded once (Clinger 1990, How to read floating point numbers
// accurately).
bool round_exactly(const Decimal& number, double& value) {
  constexpr int kMostPower = 22;
  static constexpr double kPowers[kMostPower + 1] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                                     1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                                     1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
  if (number.power > kMostPower || number.power < -kMostPower) {
    return false;
  }
  value = static_cast<double>(number.digits);
  value = number.power < 0 ? value / kPowers[-number.power] : value * kPowers[number.power];
  value = number.is_negative ? -value : value;
  return true;
}

// Takes two digits up to a number.
bool take_pair(Reader& reader, int most) { return reader.count_digits() >= 2 && reader.take_number(2) <= most; }

void take_fraction(Reader& reader) {
  if (reader.take('.')) {
    reader.skip(reader.count_digits());
  }
}

constexpr int kLastHour = 23;
constexpr int kLastMinute = 59;
constexpr int kLastSecond = 60;  // a leap second

bool is_time(std::string_view value) {
  Reader reader(value);
  if (!take_pair(reader, kLastHour)) {
    return false;
  }
  if (!reader.take(':') && reader.count_digits() == 0) {
    return is_end(reader);
  }
  if (!take_pair(reader, kLastMinute)) {
    return false;
  }
  const bool is_before_seconds = reader.take(':');
  if (is_before_seconds || reader.count_digits() > 0) {
    if (!take_pair(reader, kLastSecond)) {
      return false;
    }
    take_fraction(reader);
  }
  return is_end(reader);
}

// Whether a month has such a day in each year.
bool is_day(int month, int day) {
  constexpr int kFebruary = 2;
  const bool is_long = month == 1 || month == 3 || month == 5 || month == 7 || month == 8 || month == 10 || month == 12;
  const int last = is_long ? 31 : month == kFebruary ? 28 : 30;
  return month >= 1 && month <= 12 && day >= 1 && day <= last;
}

bool is_date_time(std::string_view value) {
  constexpr std::size_t kToMinutes = 12;
  constexpr std::size_t kToSeconds = 14;
  Reader reader(value);
  const std::size_t digits = reader.count_digits();
  if (digits == kToMinutes || digits == kToSeconds) {
    const int year = reader.take_number(4);
    const int month = reader.take_number(2);
    const int day = reader.take_number(2);
    if (year == 0 || !is_day(month, day) || !take_pair(reader, kLastHour) || !take_pair(reader, kLastMinute)) {
      return false;
    }
    if (digits == kToSeconds) {
      if (!take_pair(reader, kLastSecond)) {
        return false;
      }
      take_fraction(reader);
    }
  } else if (digits == 4 || digits == 6 || digits == 8 || digits == 10) {
    reader.skip(digits);  // a date without a time, of which no attribute is made
  } else {
    return false;
  }
  if (reader.take_sign()) {
    if (reader.count_digits() != 4) {
      return false;
    }
    reader.skip(4);
  }
  return is_end(reader);
}

}  // namespace

bool read_point(std::string_view value, double* point) {
  Reader reader(value);
  for (int n = 0; n < 3; ++n) {
    Decimal number;
    if ((n > 0 && !reader.take('\\')) || !read_decimal(reader, number) || !round_exactly(number, point[n])) {
      return false;
    }
  }
  return reader.is_at_end();
}

bool is_regular_value(std::string_view vr, std::string_view value) {
  if (value.empty()) {
    return true;
  }
  if (vr == "UI") {
    return is_identifier(value);
  }
  if (vr == "IS") {
    return is_whole_number(value);
  }
  if (vr == "TM") {
    return is_time(value);
  }
  return vr == "DT" && is_date_time(value);
}

}  // namespace medimg
