// Kernels that use what CUDA gives, and kernels that misuse it.
#include "products.cuh"

namespace scsco {
namespace {

constexpr int kThreads = 64;
constexpr int kDepth = 80;

// Row r of out (9, 64): what thread i got.
__global__ void collectives_kernel(Global<int32_t> out) {
  const int thread = threadIdx.x;
  const int values[] = {
      __shfl_sync(kAllLanes, thread, 5),
      __shfl_sync(kAllLanes, thread, 3, 8),
      __shfl_xor_sync(kAllLanes, thread, 6),
      __shfl_down_sync(kAllLanes, thread, 4),
      __shfl_up_sync(kAllLanes, thread, 4, 16),
      static_cast<int>(__ballot_sync(kAllLanes, thread % 3 == 0)),
      __any_sync(kAllLanes, thread == 40) + 2 * __all_sync(kAllLanes, thread > 31),
      __syncthreads_count(thread % 2),
      __syncthreads_or(thread == 9) + 2 * __syncthreads_and(thread != 9) + 4 * __syncthreads_and(thread >= 0)};
  for (int i = 0; i < 9; ++i) out[i * kThreads + thread] = values[i];
}

// What shared memory holds before it is written, as float32, float16 and bfloat16.
__global__ void poison_kernel(Global<float> out) {
  SharedMemory memory;
  const Shared<float> wide = memory.array<float>(1);
  const Shared<half> narrow = memory.array<half>(1);
  const Shared<bfloat16> other = memory.array<bfloat16>(1);
  out[0] = wide[0];
  out[1] = to_float(narrow[0]);
  out[2] = to_float(other[0]);
  wide[0] = 1;  // the next block must not find it
}

// Rows sum to the block's: every thread writes the sums of the threads' numbers and of their squares.
__global__ void sums_kernel(Global<const float> x, Global<float> out) {
  SharedMemory memory;
  const Shared<float> scratch = memory.array<float>(2 * kWarp);
  const int thread = thread_of_block();
  const float value = x[thread];
  float values[2] = {value, value * value};
  block_sum(values, scratch);
  out[thread] = values[0];
  out[kThreads + thread] = values[1];
}

// Fills a tile of ROWS rows with value(r, c), rounded.
template <class Kind, int ROWS, class Value>
void fill_tile(Shared<typename Kind::Element> tile, int columns, const Value& value) {
  for (int i = thread_of_block(); i < ROWS * columns; i += kThreads) {
    const int r = i / columns, c = i % columns;
    tile[place_in_tile<typename Kind::Element, ROWS>(r, c)] = Kind::element(value(r, c));
  }
}

template <class Kind, bool A_BY_ROWS, bool B_BY_ROWS>
__global__ void product_kernel(Global<const float> a, Global<const float> b, Global<float> stored, Global<float> each) {
  constexpr int M = 32, N = 64, kLd = N + 2;
  using Element = typename Kind::Element;
  constexpr int kRowsA = A_BY_ROWS ? M : kDepth, kRowsB = B_BY_ROWS ? N : kDepth;
  constexpr int kColumnsA = A_BY_ROWS ? kDepth : M, kColumnsB = B_BY_ROWS ? kDepth : N;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(tile_size<Element>(kRowsA, kColumnsA));
  const Shared<Element> right = memory.array<Element>(tile_size<Element>(kRowsB, kColumnsB));
  const Shared<float> out = memory.array<float>(M * kLd);
  fill_tile<Kind, kRowsA>(left, kColumnsA,
                          [&](int r, int c) { return A_BY_ROWS ? a[r * kDepth + c] : a[c * kDepth + r]; });
  fill_tile<Kind, kRowsB>(right, kColumnsB, [&](int r, int c) { return B_BY_ROWS ? b[c * N + r] : b[r * N + c]; });
  TileProduct<Kind, M, N, 1, 2> sums;
  __syncthreads();
  sums.template add<A_BY_ROWS, B_BY_ROWS, kRowsA, kRowsB>(left, right, kDepth);
  sums.store(out, kLd);
  __syncthreads();
  for (int i = thread_of_block(); i < M * N; i += kThreads) stored[i] = out[i / N * kLd + i % N];
  sums.each([&](int m, int n, float& value) { each[m * N + n] = value; });
}

// a (32, 80), b (80, 64), float32, rounded to `like`'s dtype -> their product, by store and by each.
std::tuple<Tensor, Tensor> product(const Tensor& a, const Tensor& b, const Tensor& like, bool tf32, bool a_by_rows,
                                   bool b_by_rows) {
  const Tensor stored = allocate({32, 64}, a), each = allocate({32, 64}, a);
  dispatch_product(like.scalar_type(), tf32, [&](auto type) {
    using Kind = typename decltype(type)::type;
    const auto run = [&](auto kernel) {
      launch("product_kernel", kernel, 1, kThreads, 64 * 1024, a, global<const float>(a), global<const float>(b),
             global<float>(stored), global<float>(each));
    };
    if (a_by_rows) return b_by_rows ? run(product_kernel<Kind, true, true>) : run(product_kernel<Kind, true, false>);
    b_by_rows ? run(product_kernel<Kind, false, true>) : run(product_kernel<Kind, false, false>);
  });
  return {stored, each};
}

// Sums become the left operand of the next product, in registers: (a b) c, (a b)^2 c and the rows' sums of (a b).
template <class Kind>
__global__ void chain_kernel(Global<const float> a, Global<const float> b, Global<const float> c, Global<float> out) {
  constexpr int M = 32, N = 64, D = 16;
  using Element = typename Kind::Element;
  SharedMemory memory;
  const Shared<Element> left = memory.array<Element>(tile_size<Element>(M, D));
  const Shared<Element> right = memory.array<Element>(tile_size<Element>(N, D));
  const Shared<Element> last = memory.array<Element>(tile_size<Element>(N, N));
  fill_tile<Kind, M>(left, D, [&](int r, int k) { return a[r * D + k]; });
  fill_tile<Kind, N>(right, D, [&](int r, int k) { return b[k * N + r]; });
  fill_tile<Kind, N>(last, N, [&](int r, int k) { return c[r * N + k]; });
  __syncthreads();
  TileProduct<Kind, M, N, 2, 1> first, second, squares;
  first.template add<true, true, M, N>(left, right, D);
  const RightColumns<Kind, N, true> columns(last);
  float totals[4] = {};
#pragma unroll
  for (int k = 0; k < N; k += Kind::kDepth) {
    const Left<Kind> own = left_of<Kind>(first.sums[0], k / Kind::kDepth);
    add_row_sums(totals, own);
    for (int j = 0; j < N / 16; ++j) {
      Right<Kind> other[2];
      columns.load(other, k, j);
      for (int n = 0; n < 2; ++n) {
        multiply(second.sums[0][2 * j + n], own, other[n]);
        multiply(squares.sums[0][2 * j + n], own, squared(other[n]));
      }
    }
  }
  second.each([&](int m, int n, float& value) { out[m * N + n] = value; });
  squares.each([&](int m, int n, float& value) { out[(M + m) * N + n] = value; });
  const int row = first.warp_row() + first.lane_row();
  for (int i = 0; i < 2; ++i) out[2 * M * N + row + 8 * i] = totals[2 * i];
}

// a (32, 16), b (16, 64), c (64, 64) -> (2 * 32 * 64 + 32).
Tensor chain(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& like, bool tf32) {
  const Tensor out = allocate({2 * 32 * 64 + 32}, a);
  dispatch_product(like.scalar_type(), tf32, [&](auto type) {
    using Kind = typename decltype(type)::type;
    if constexpr (!kIsIEEE<Kind>) {
      LAUNCH((chain_kernel<Kind>), 1, kThreads, 64 * 1024, a, global<const float>(a), global<const float>(b),
             global<const float>(c), global<float>(out));
    }
  });
  return out;
}

// Two copies, of x and of zeros.
__global__ void copies_kernel(Global<const float> x, Global<float> out) {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(8);
  if (threadIdx.x > 0) return;
  copy_16_bytes(array, x, true);
  copy_16_bytes(array + 4, x, false);
  wait_for_copies();
  for (int i = 0; i < 8; ++i) out[i] = array[i];
}

__global__ void read_kernel(Global<const float> x, Global<float> out, int64_t index) {
  if (blockIdx.x == 1 && threadIdx.x == 3) out[0] = x[index];
}
__global__ void write_kernel(Global<float> x, int64_t index) { x[index] = 7.0f; }
__global__ void load_kernel(Global<const float> x, Global<float> out, int64_t index) { store(out, load<4>(x + index)); }

__global__ void returns_before_a_barrier_kernel() {
  if (threadIdx.x < 20) return;
  __syncthreads();
}
__global__ void two_barriers_kernel() {
  if (threadIdx.x < 20) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void lane_missing_kernel() {
  if (threadIdx.x % 32 != 7) __syncwarp();
}
__global__ void lane_not_named_kernel() { __shfl_sync(0xffff, 1, 0); }
__global__ void two_collectives_kernel() {
  if (threadIdx.x % 2) {
    __shfl_sync(kAllLanes, 1, 0);
  } else {
    __syncwarp();
  }
}
__global__ void shared_overrun_kernel() {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(3);
  memory.array<float>(3);
  array[3] = 1.0f;
}
__global__ void too_much_shared_kernel() {
  SharedMemory memory;
  memory.array<float>(64 * 1024);
}
__global__ void reads_too_early_kernel(Global<float> out) {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(kThreads);
  array[threadIdx.x] = 1.0f;
  out[threadIdx.x] = array[kThreads - 1 - threadIdx.x];
}
__global__ void writes_too_early_kernel(Global<float> out) {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(kThreads);
  array[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = array[kThreads - 1 - threadIdx.x];
  array[threadIdx.x] = 2.0f;
}
__global__ void warp_without_barrier_kernel(Global<float> out) {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(kThreads);
  array[threadIdx.x] = 1.0f;
  __shfl_sync(kAllLanes, 1, 0);  // orders no memory
  out[threadIdx.x] = array[threadIdx.x ^ 1];
}
// Correct: the lanes of a warp wait for each other.
__global__ void warp_with_barrier_kernel(Global<float> out) {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(kThreads);
  array[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncwarp();
  out[threadIdx.x] = array[threadIdx.x ^ 1];
}
__global__ void misplaced_matrix_kernel() {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(512);
  uint32_t words[4];
  load_matrices<false>(words, LanePlace<float>(array + 1, 0, 0), 0, 0);
}
__global__ void copy_not_waited_for_kernel(Global<const float> x, Global<float> out) {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(8);
  if (threadIdx.x > 0) return;
  copy_16_bytes(array, x, true);
  wait_for_copies();
  copy_16_bytes(array + 4, x + 4, true);
  out[0] = array[4];
}
__global__ void copy_over_what_is_read_kernel(Global<const float> x, Global<float> out) {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(4);
  if (threadIdx.x == 0) copy_16_bytes(array, x, true);
  wait_for_copies();
  out[threadIdx.x] = array[0];
}
__global__ void copy_nobody_waits_for_kernel(Global<const float> x) {
  SharedMemory memory;
  if (threadIdx.x == 0) copy_16_bytes(memory.array<float>(4), x, true);
}

void misuse(const std::string& name, const Tensor& out) {
  const auto run = [&](auto kernel, auto... arguments) {
    launch(name.c_str(), kernel, 2, kThreads, 4096, out, arguments...);
  };
  if (name == "returns_before_a_barrier") return run(returns_before_a_barrier_kernel);
  if (name == "two_barriers") return run(two_barriers_kernel);
  if (name == "lane_missing") return run(lane_missing_kernel);
  if (name == "lane_not_named") return run(lane_not_named_kernel);
  if (name == "two_collectives") return run(two_collectives_kernel);
  if (name == "shared_overrun") return run(shared_overrun_kernel);
  if (name == "too_much_shared") return run(too_much_shared_kernel);
  if (name == "reads_too_early") return run(reads_too_early_kernel, global<float>(out));
  if (name == "writes_too_early") return run(writes_too_early_kernel, global<float>(out));
  if (name == "warp_without_barrier") return run(warp_without_barrier_kernel, global<float>(out));
  if (name == "misplaced_matrix") return run(misplaced_matrix_kernel);
  if (name == "copy_not_waited_for")
    return run(copy_not_waited_for_kernel, global<const float>(out), global<float>(out));
  if (name == "copy_over_what_is_read") {
    return run(copy_over_what_is_read_kernel, global<const float>(out), global<float>(out));
  }
  if (name == "copy_nobody_waits_for") return run(copy_nobody_waits_for_kernel, global<const float>(out));
  if (name == "too_many_threads") return launch("too_many_threads", lane_missing_kernel, 1, 1025, 0, out);
  if (name == "no_blocks") return launch("no_blocks", lane_missing_kernel, 0, 32, 0, out);
  check(false, "there is no misuse ", name);
}

Tensor collectives(const Tensor& like) {
  const Tensor out = allocate({9, kThreads}, like, ScalarType::Int);
  LAUNCH((collectives_kernel), 1, kThreads, 0, out, global<int32_t>(out));
  return out;
}

Tensor poison(const Tensor& like) {
  const Tensor out = allocate({3}, like);
  LAUNCH((poison_kernel), 3, 1, 1024, out, global<float>(out));
  return out;
}

Tensor sums(const Tensor& x) {
  const Tensor out = allocate({2, kThreads}, x);
  LAUNCH((sums_kernel), 1, kThreads, 1024, x, global<const float>(x), global<float>(out));
  return out;
}

Tensor warp_exchange(const Tensor& like) {
  const Tensor out = allocate({kThreads}, like);
  LAUNCH((warp_with_barrier_kernel), 1, kThreads, 4096, out, global<float>(out));
  return out;
}

Tensor copies(const Tensor& x) {
  const Tensor out = allocate({8}, x);
  LAUNCH((copies_kernel), 1, kThreads, 4096, x, global<const float>(x), global<float>(out));
  return out;
}

Tensor read(const Tensor& x, int64_t index) {
  const Tensor out = allocate({1}, x);
  LAUNCH((read_kernel), dim3(2, 1, 1), kThreads, 0, x, global<const float>(x), global<float>(out), index);
  return out;
}

void write(const Tensor& x, int64_t index) { LAUNCH((write_kernel), 1, 1, 0, x, global<float>(x), index); }

Tensor load_four(const Tensor& x, int64_t index) {
  const Tensor out = allocate({4}, x);
  LAUNCH((load_kernel), 1, 1, 0, x, global<const float>(x), global<float>(out), index);
  return out;
}

__global__ void round_kernel(Global<const float> x, Global<half> halves, Global<bfloat16> bfloats, Global<float> tf32) {
  const int64_t i = blockIdx.x;
  halves[i] = from_float<half>(x[i]);
  bfloats[i] = from_float<bfloat16>(x[i]);
  tf32[i] = TF32Product::element(x[i]);
}

std::tuple<Tensor, Tensor, Tensor> round(const Tensor& x) {
  const int64_t count = x.numel();
  const Tensor halves = allocate({count}, x, ScalarType::Half), bfloats = allocate({count}, x, ScalarType::BFloat16);
  const Tensor tf32 = allocate({count}, x);
  LAUNCH((round_kernel), static_cast<unsigned>(count), 1, 0, x, global<const float>(x), global<half>(halves),
         global<bfloat16>(bfloats), global<float>(tf32));
  return {halves, bfloats, tf32};
}

}  // namespace

STABLE_TORCH_LIBRARY(scsco_fast_checks, m) {
  m.def("collectives(Tensor like) -> Tensor");
  m.def("poison(Tensor like) -> Tensor");
  m.def("sums(Tensor x) -> Tensor");
  m.def("product(Tensor a, Tensor b, Tensor like, bool tf32, bool a_by_rows, bool b_by_rows) -> (Tensor, Tensor)");
  m.def("chain(Tensor a, Tensor b, Tensor c, Tensor like, bool tf32) -> Tensor");
  m.def("copies(Tensor x) -> Tensor");
  m.def("misuse(str name, Tensor out) -> ()");
  m.def("warp_exchange(Tensor like) -> Tensor");
  m.def("read(Tensor x, int index) -> Tensor");
  m.def("write(Tensor(a!) x, int index) -> ()");
  m.def("load_four(Tensor x, int index) -> Tensor");
  m.def("round(Tensor x) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(scsco_fast_checks, CPU, m) {
  m.impl("collectives", TORCH_BOX(&collectives));
  m.impl("poison", TORCH_BOX(&poison));
  m.impl("sums", TORCH_BOX(&sums));
  m.impl("product", TORCH_BOX(&product));
  m.impl("chain", TORCH_BOX(&chain));
  m.impl("copies", TORCH_BOX(&copies));
  m.impl("misuse", TORCH_BOX(&misuse));
  m.impl("warp_exchange", TORCH_BOX(&warp_exchange));
  m.impl("read", TORCH_BOX(&read));
  m.impl("write", TORCH_BOX(&write));
  m.impl("load_four", TORCH_BOX(&load_four));
  m.impl("round", TORCH_BOX(&round));
}

}  // namespace scsco
