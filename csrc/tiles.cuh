// Tiles of operands in shared memory: where their elements stand, how a warp reads matrices of them, how they arrive.
//
// A panel is some rows of 128 bytes, whose eight groups of 16 bytes are exchanged by the row's number: group c of row r
// stands at c ^ (r % 8). Eight rows of one group then lie in 32 banks, without padding. A tile of more columns is
// panels one after the other.
#pragma once

#include "portable.cuh"

namespace scsco {

constexpr int kRowBytes = 128;
template <class Element>
constexpr int kPanel = kRowBytes / static_cast<int>(sizeof(Element));  // columns
template <class Element>
constexpr int kGroup = 16 / static_cast<int>(sizeof(Element));  // columns

// Elements of a tile.
template <class Element>
__host__ __device__ constexpr int64_t tile_size(int rows, int columns) {
  return int64_t(ceil_div(columns, kPanel<Element>)) * rows * kPanel<Element>;
}

// Where an element of a panel stands.
template <class Element>
__device__ __forceinline__ int place_in_panel(int row, int column) {
  constexpr int V = kGroup<Element>;
  return row * kPanel<Element> + ((column / V) ^ (row % 8)) * V + column % V;
}

// The panel of a tile of ROWS rows that a column stands in.
template <int ROWS, class Element>
__device__ __forceinline__ Shared<const Element> panel_of(Shared<const Element> tile, int column) {
  return tile + column / kPanel<Element> * ROWS * kPanel<Element>;
}

// Where an element of a tile of ROWS rows stands.
template <class Element, int ROWS>
__device__ __forceinline__ int place_in_tile(int row, int column) {
  constexpr int kColumns = kPanel<Element>;
  return column / kColumns * ROWS * kColumns + place_in_panel<Element>(row, column % kColumns);
}

// A lane's place in a panel. The places of other steps of 32 bytes follow by an exclusive or, because such a step
// changes bits of the group that a lane's own place leaves alone, those of other rows, a multiple of 8, by a sum: both
// are constants where loops are unrolled.
template <class Element>
class LanePlace {
 public:
  __device__ __forceinline__ LanePlace(Shared<const Element> tile, int row, int column)
      : tile_(tile), own_(place_in_panel<Element>(row, column)) {
#ifndef SCSCO_EMULATED
    address_ = static_cast<uint32_t>(__cvta_generic_to_shared(tile)) + own_ * sizeof(Element);
#endif
  }

  // `flip` columns and `ahead` elements away.
  __device__ __forceinline__ Shared<const Element> at(int flip, int ahead) const {
    return tile_ + ((own_ ^ flip) + ahead);
  }

#ifndef SCSCO_EMULATED
  // The same as an address that PTX takes: of a pointer nvcc forgets that it points to shared memory. A tile begins
  // where a row's 128 bytes do, which the exclusive or needs.
  __device__ __forceinline__ uint32_t address(int flip, int ahead) const {
    return (address_ ^ (flip * sizeof(Element))) + ahead * sizeof(Element);
  }
#endif

 private:
  Shared<const Element> tile_;
  int own_;
#ifndef SCSCO_EMULATED
  uint32_t address_;
#endif
};

// ldmatrix.x4, transposed or not, from the 16 bytes at a lane's place.
template <bool TRANSPOSED, class Element>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const LanePlace<Element>& from, int flip, int ahead
#ifdef SCSCO_EMULATED
                                              ,
                                              emulation::Location where = emulation::Location::current()
#endif
) {
#ifdef SCSCO_EMULATED
  emulation::load_four_matrices(to, from.at(flip, ahead), TRANSPOSED, where);
#else
  if constexpr (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from.address(flip, ahead)));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from.address(flip, ahead)));
  }
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Copies to shared memory that arrive while the block computes, on sm_80 and later.

// 16 bytes, or zeros where not `inside`.
template <class Element>
__device__ __forceinline__ void copy_16_bytes(Shared<Element> to, Global<const Element> from, bool inside) {
#ifdef SCSCO_EMULATED
  emulation::start_copy(to, from, inside);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(inside ? 16 : 0)
      : "memory");
#else
  constexpr int V = kGroup<Element>;
  Vector<Element, V> values{};
  if (inside) values = load<V>(from);
  store(to, values);
#endif
}

// Every copy of this thread has arrived. Others see them after __syncthreads.
__device__ __forceinline__ void wait_for_copies() {
#ifdef SCSCO_EMULATED
  emulation::machine.wait_for_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace scsco
