// Kernels that use what CUDA gives, and kernels that misuse it.
#include "products.cuh"

namespace scsco {
namespace {

constexpr int kThreads = 64;

// Row r of out (9, 64): what thread i got.
__global__ void collectives_kernel(Global<int32_t> out) {
  const int thread = threadIdx.x;
  const int values[] = {__shfl_sync(kAllLanes, thread, 5),
                        __shfl_sync(kAllLanes, thread, 3, 8),
                        __shfl_xor_sync(kAllLanes, thread, 6),
                        __shfl_down_sync(kAllLanes, thread, 4),
                        __shfl_up_sync(kAllLanes, thread, 4, 16),
                        static_cast<int>(__ballot_sync(kAllLanes, thread % 3 == 0)),
                        __any_sync(kAllLanes, thread == 40) + 2 * __all_sync(kAllLanes, thread > 31),
                        __syncthreads_count(thread % 2),
                        __syncthreads_or(thread == 9) + 2 * __syncthreads_and(thread != 9) +
                            4 * __syncthreads_and(thread >= 0)};
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

template <class Kind, bool A_BY_ROWS, bool B_BY_ROWS>
__global__ void product_kernel(Global<const float> a, Global<const float> b, Global<float> stored, Global<float> each,
                               int depth) {
  constexpr int M = 32, N = 64;
  using Element = typename Kind::Element;
  SharedMemory memory;
  const Shared<float> scratch = memory.array<float>(kProductScratch<Kind>);
  const int lda = leading<Element>(A_BY_ROWS ? depth : M), ldb = leading<Element>(B_BY_ROWS ? N : depth);
  const Shared<Element> left = memory.array<Element>((A_BY_ROWS ? M : depth) * lda);
  const Shared<Element> right = memory.array<Element>((B_BY_ROWS ? depth : N) * ldb);
  const Shared<float> out = memory.array<float>(M * leading<float>(N));
  fill_tile<Kind>(left, lda, A_BY_ROWS ? M : depth, A_BY_ROWS ? depth : M,
                  [&](int r, int c) { return A_BY_ROWS ? a[r * depth + c] : a[c * depth + r]; });
  fill_tile<Kind>(right, ldb, B_BY_ROWS ? depth : N, B_BY_ROWS ? N : depth,
                  [&](int r, int c) { return B_BY_ROWS ? b[r * N + c] : b[c * N + r]; });
  TileProduct<Kind, M, N, 1, 2> sums(scratch);
  __syncthreads();
  sums.template add<A_BY_ROWS, B_BY_ROWS>(left, lda, right, ldb, depth);
  sums.store(out, leading<float>(N));
  __syncthreads();
  for (int i = thread_of_block(); i < M * N; i += kThreads) stored[i] = out[i / N * leading<float>(N) + i % N];
  sums.each([&](int m, int n, float& value) { each[m * N + n] = value; });
}

// a (32, depth), b (depth, 64), float32, rounded to `like`'s dtype -> their product, by store and by each.
std::tuple<Tensor, Tensor> product(const Tensor& a, const Tensor& b, const Tensor& like, bool tf32, bool a_by_rows,
                                   bool b_by_rows) {
  const Tensor stored = allocate({32, 64}, a), each = allocate({32, 64}, a);
  dispatch_product(like.scalar_type(), tf32, [&](auto type) {
    using Kind = typename decltype(type)::type;
    const auto run = [&](auto kernel) {
      launch("product_kernel", kernel, 1, kThreads, 64 * 1024, a, global<const float>(a), global<const float>(b),
             global<float>(stored), global<float>(each), static_cast<int>(a.size(1)));
    };
    if (a_by_rows) return b_by_rows ? run(product_kernel<Kind, true, true>) : run(product_kernel<Kind, true, false>);
    b_by_rows ? run(product_kernel<Kind, false, true>) : run(product_kernel<Kind, false, false>);
  });
  return {stored, each};
}

__global__ void read_kernel(Global<const float> x, Global<float> out, int64_t index) {
  if (blockIdx.x == 1 && threadIdx.x == 3) out[0] = x[index];
}
__global__ void write_kernel(Global<float> x, int64_t index) { x[index] = 7.0f; }
__global__ void load_kernel(Global<const float> x, Global<float> out, int64_t index) {
  store(out, load<4>(x + index));
}

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
__global__ void misplaced_fragment_kernel() {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(512);
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> fragment;
  wmma::load_matrix_sync(fragment, Shared<const float>(array) + 1, 16, wmma::mem_row_major);
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
  if (name == "misplaced_fragment") return run(misplaced_fragment_kernel);
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

Tensor read(const Tensor& x, int64_t index) {
  const Tensor out = allocate({1}, x);
  LAUNCH((read_kernel), dim3(2, 1, 1), kThreads, 0, x, global<const float>(x), global<float>(out), index);
  return out;
}

void write(const Tensor& x, int64_t index) {
  LAUNCH((write_kernel), 1, 1, 0, x, global<float>(x), index);
}

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
  m.impl("misuse", TORCH_BOX(&misuse));
  m.impl("warp_exchange", TORCH_BOX(&warp_exchange));
  m.impl("read", TORCH_BOX(&read));
  m.impl("write", TORCH_BOX(&write));
  m.impl("load_four", TORCH_BOX(&load_four));
  m.impl("round", TORCH_BOX(&round));
}

}  // namespace scsco
