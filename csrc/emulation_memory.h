// Memory as kernels see it: pointers that know their array and report what is done to it.
#pragma once

#include "emulation_machine.h"

namespace emulation {

// A pointer that knows its array. `Space` is told of every access: where, how many bytes, whether it is a write.
template <class T, class Space>
class Checked {
  using Value = std::remove_const_t<T>;

 public:
  // One element: reads when converted, writes when assigned to.
  class Reference {
   public:
    explicit Reference(T* at) : at_(at) {}
    Reference(const Reference&) = default;
    operator Value() const {
      Space::touch(at_, sizeof(T), false);
      return *at_;
    }
    Reference& operator=(const Value& value) {
      Space::touch(at_, sizeof(T), true);
      *at_ = value;
      return *this;
    }
    Reference& operator=(const Reference& other) { return *this = static_cast<Value>(other); }
    Reference& operator+=(const Value& value) { return *this = static_cast<Value>(*this) + value; }
    Reference& operator-=(const Value& value) { return *this = static_cast<Value>(*this) - value; }
    Reference& operator*=(const Value& value) { return *this = static_cast<Value>(*this) * value; }

   private:
    T* at_;
  };

  Checked() = default;
  Checked(T* base, int64_t size, int64_t at = 0) : base_(base), size_(size), at_(at) {}
  operator Checked<const T, Space>() const
    requires(!std::is_const_v<T>)
  {
    return {base_, size_, at_};
  }

  explicit operator bool() const { return base_ != nullptr; }
  Checked operator+(int64_t by) const { return {base_, size_, at_ + by}; }
  Checked operator-(int64_t by) const { return {base_, size_, at_ - by}; }
  Checked& operator+=(int64_t by) {
    at_ += by;
    return *this;
  }
  bool operator==(const Checked& other) const { return base_ == other.base_ && at_ == other.at_; }

  auto operator[](int64_t index) const {
    if constexpr (std::is_const_v<T>) {
      T* const at = checked(index, 1, "reads");
      Space::touch(at, sizeof(T), false);
      return Value(*at);
    } else {
      return Reference(checked(index, 1, "reads or writes"));
    }
  }
  auto operator*() const { return (*this)[0]; }

  // `count` elements from here, as bytes, from an address that their number of bytes divides.
  void read(void* to, int count) const {
    T* const at = aligned(count, "reads");
    Space::touch(at, count * sizeof(T), false);
    std::memcpy(to, at, count * sizeof(T));
  }
  void write(const void* from, int count) const {
    T* const at = aligned(count, "writes");
    Space::touch(at, count * sizeof(T), true);
    std::memcpy(at, from, count * sizeof(T));
  }

  // Where `count` elements begin that somebody reads or writes later.
  T* address(int count, const char* does) const { return aligned(count, does); }
  bool aligned_to(size_t bytes) const { return reinterpret_cast<uintptr_t>(base_ + at_) % bytes == 0; }

 private:
  T* checked(int64_t index, int64_t count, const char* does) const {
    const int64_t first = at_ + index;
    if (first < 0 || first + count > size_) fail(first, does);
    return base_ + first;
  }

  T* aligned(int count, const char* does) const {
    T* const at = checked(0, count, does);
    if (!aligned_to(count * sizeof(T))) {
      machine.fail(std::string(does) + " " + std::to_string(count) + " elements from element " + std::to_string(at_) +
                   ", whose address " + std::to_string(count * sizeof(T)) + " does not divide");
    }
    return at;
  }

  [[noreturn]] __attribute__((noinline, cold)) void fail(int64_t index, const char* does) const {
    machine.fail(std::string(does) + " element " + std::to_string(index) + " of " + std::to_string(size_) + " in " +
                 Space::kName);
  }

  T* base_ = nullptr;
  int64_t size_ = 0, at_ = 0;
};

struct GlobalSpace {
  static constexpr const char* kName = "a tensor";
  static void touch(const void*, size_t, bool) {}
};

struct SharedSpace {
  static constexpr const char* kName = "an array in shared memory";
  static void touch(const void* at, size_t bytes, bool write) { machine.touch(at, bytes, write); }
};

}  // namespace emulation
