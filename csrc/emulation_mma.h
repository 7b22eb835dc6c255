// What PTX gives a warp for products on tensor cores, and copies that arrive later: ldmatrix, mma.sync and cp.async.
//
// Fragments have the layouts that the PTX manual draws. A product adds one k after the other in float32; hardware adds
// several at once, in an order that it does not tell.
#pragma once

namespace emulation {

// The ten bits of mantissa that tensor cores read, rounded to nearest, ties away from zero: cvt.rna.tf32.f32.
inline float round_to_tf32(float value) {
  const int bits = __float_as_int(value);
  if ((bits & 0x7f800000) == 0x7f800000) return value;
  return __int_as_float((bits + 0x1000) & ~0x1fff);
}

// ldmatrix.x4: lane l hands over row l % 8 of matrix l / 8, 16 bytes. Lane l receives word l % 4 of row l / 4 of each
// matrix or, transposed, 16-bit numbers 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
template <class T>
void load_four_matrices(uint32_t (&to)[4], Checked<const T, SharedSpace> row, bool transposed, const Location& where) {
  struct Lane {
    uint16_t row[8];
    uint32_t* to;
  } mine{{}, to};
  row.read(mine.row, static_cast<int>(16 / sizeof(T)));
  machine.collective("ldmatrix", kFullMask, &mine, where, [transposed](void** lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      const int first = lane / 4, second = lane % 4 * 2;
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint32_t word = 0;
        for (int i = 0; i < 2; ++i) {
          const int r = transposed ? second + i : first, c = transposed ? first : second + i;
          word |= uint32_t(static_cast<Lane*>(lanes[8 * matrix + r])->row[c]) << (16 * i);
        }
        static_cast<Lane*>(lanes[lane])->to[matrix] = word;
      }
    }
  });
}

// The numbers of a word as the tensor cores see them: of float32 the upper 19 bits.
template <class T>
void unpack(uint32_t word, float* to) {
  to[0] = __int_as_float(static_cast<int>(word & ~0x1fffu));
}
template <>
inline void unpack<__half>(uint32_t word, float* to) {
  for (int i = 0; i < 2; ++i) to[i] = __half2float({static_cast<uint16_t>(word >> (16 * i))});
}
template <>
inline void unpack<__nv_bfloat16>(uint32_t word, float* to) {
  for (int i = 0; i < 2; ++i) to[i] = __bfloat162float({static_cast<uint16_t>(word >> (16 * i))});
}

// mma.sync.m16n8k16, of float32 numbers m16n8k8: sums += a b, by rows and by columns.
template <class T>
void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Location& where) {
  constexpr int kInWord = 4 / sizeof(T), K = 8 * kInWord;
  struct Lane {
    float* sums;
    const uint32_t *a, *b;
  } mine{sums, a, b};
  machine.collective("mma.sync", kFullMask, &mine, where, [](void** lanes) {
    float left[16][K], right[K][8], sum[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Lane& from = *static_cast<Lane*>(lanes[lane]);
      const int group = lane / 4, place = lane % 4;
      for (int i = 0; i < 4; ++i) unpack<T>(from.a[i], &left[group + i % 2 * 8][place * kInWord + i / 2 * 4 * kInWord]);
      for (int i = 0; i < 2; ++i) {
        float numbers[kInWord];
        unpack<T>(from.b[i], numbers);
        for (int k = 0; k < kInWord; ++k) right[(place + 4 * i) * kInWord + k][group] = numbers[k];
      }
      for (int i = 0; i < 4; ++i) sum[group + i / 2 * 8][place * 2 + i % 2] = from.sums[i];
    }
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < K; ++k) {
        for (int n = 0; n < 8; ++n) sum[m][n] += left[m][k] * right[k][n];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      float* const to = static_cast<Lane*>(lanes[lane])->sums;
      for (int i = 0; i < 4; ++i) to[i] = sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  });
}

// cp.async of 16 bytes, or of as many zeros. They arrive when the thread waits for them, not before; until then they
// hold NaN, and whoever touches them is told.
template <class T>
void start_copy(Checked<T, SharedSpace> to, Checked<const T, GlobalSpace> from, bool inside) {
  constexpr int kCount = 16 / sizeof(T);
  machine.begin_copy(to.address(kCount, "copies to"), inside ? from.address(kCount, "copies") : nullptr);
}

}  // namespace emulation
