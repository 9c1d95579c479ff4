// 3x3 convolutions and their two gradients by oneDNN, as a foreign function of XLA's CPU back end.
//
// All arrays are float32 and laid out as XLA has them: pictures (n, h, w, c), kernels (3, 3, in, out). Stride 1, a border
// of zeros. What a kind takes and returns:
//   0: picture, kernel -> picture
//   1: gradient of the picture that 0 returns, kernel -> gradient of the picture that it took
//   2: picture that 0 took, gradient of the picture that it returns -> gradient of the kernel
// With `bfloat16` the two arguments are rounded on the way in; sums and results stay float32.

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using dnnl::convolution_backward_data;
using dnnl::convolution_backward_weights;
using dnnl::convolution_forward;
using dnnl::memory;
using Desc = memory::desc;
using Tag = memory::format_tag;
using Type = memory::data_type;

enum Kind : int64_t { kForward = 0, kGradientOfPicture = 1, kGradientOfKernel = 2 };

const memory::dims kOnes = {1, 1};  // stride, and padding on each side
constexpr auto kDirect = dnnl::algorithm::convolution_direct;
constexpr auto kTraining = dnnl::prop_kind::forward_training;

dnnl::engine& Engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// Version 3 describes a primitive in one step, version 2 in two.
#if DNNL_VERSION_MAJOR >= 3
auto Describe(const Desc& in, const Desc& kernel, const Desc& out, const dnnl::primitive_attr& attributes) {
  return convolution_forward::primitive_desc(Engine(), kTraining, kDirect, in, kernel, out, kOnes, kOnes, kOnes,
                                             attributes);
}
template <typename Backward, typename Hint>
auto DescribeBackward(const Desc& a, const Desc& b, const Desc& c, const Hint& hint,
                      const dnnl::primitive_attr& attributes) {
  return typename Backward::primitive_desc(Engine(), kDirect, a, b, c, kOnes, kOnes, kOnes, hint, attributes);
}
#else
auto Describe(const Desc& in, const Desc& kernel, const Desc& out, const dnnl::primitive_attr& attributes) {
  return convolution_forward::primitive_desc({kTraining, kDirect, in, kernel, out, kOnes, kOnes, kOnes}, attributes,
                                             Engine());
}
template <typename Backward, typename Hint>
auto DescribeBackward(const Desc& a, const Desc& b, const Desc& c, const Hint& hint,
                      const dnnl::primitive_attr& attributes) {
  return typename Backward::primitive_desc({kDirect, a, b, c, kOnes, kOnes, kOnes}, attributes, Engine(), hint);
}
#endif

struct Plan {
  dnnl::primitive primitive;
  Desc first, second, result, scratch;  // as the primitive wants them
};

using Shape = std::array<int64_t, 5>;  // n, h, w, channels in, channels out

Plan MakePlan(int64_t kind, bool bfloat16, const Shape& shape) {
  const auto [n, h, w, in, out] = shape;
  const Type narrow = bfloat16 ? Type::bf16 : Type::f32;
  auto picture = [&](int64_t channels, Type type) { return Desc({n, channels, h, w}, type, Tag::nhwc); };
  auto kernel = [&](Type type) { return Desc({out, in, 3, 3}, type, Tag::any); };
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (kind == kForward) {
    auto d = Describe(picture(in, narrow), kernel(narrow), picture(out, Type::f32), attributes);
    return {convolution_forward(d), d.src_desc(), d.weights_desc(), d.dst_desc(), d.scratchpad_desc()};
  }
  auto hint = Describe(picture(in, narrow), kernel(narrow), picture(out, narrow), {});
  if (kind == kGradientOfPicture) {
    auto d = DescribeBackward<convolution_backward_data>(picture(in, Type::f32), kernel(narrow), picture(out, narrow),
                                                         hint, attributes);
    return {convolution_backward_data(d), d.diff_dst_desc(), d.weights_desc(), d.diff_src_desc(),
            d.scratchpad_desc()};
  }
  auto d = DescribeBackward<convolution_backward_weights>(picture(in, narrow), kernel(Type::f32), picture(out, narrow),
                                                          hint, attributes);
  return {convolution_backward_weights(d), d.src_desc(), d.diff_dst_desc(), d.diff_weights_desc(),
          d.scratchpad_desc()};
}

std::shared_ptr<Plan> FindPlan(int64_t kind, bool bfloat16, const Shape& shape) {
  static std::mutex mutex;
  static std::map<std::pair<std::pair<int64_t, bool>, Shape>, std::shared_ptr<Plan>> plans;
  std::lock_guard<std::mutex> lock(mutex);
  auto& plan = plans[{{kind, bfloat16}, shape}];
  if (!plan) plan = std::make_shared<Plan>(MakePlan(kind, bfloat16, shape));
  return plan;
}

// Memory that a thread keeps from call to call, one block per use.
struct Blocks {
  std::array<std::vector<char>, 4> held;

  void* Get(int index, size_t bytes) {
    auto& block = held[index];
    if (block.size() < bytes + 64) block.resize(bytes + 64);
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block.data()) + 63) & ~uintptr_t{63});
  }
};

memory Converted(const Desc& wanted, const Desc& given, void* data, dnnl::stream& stream, Blocks& blocks, int index) {
  memory from(given, Engine(), data);
  if (wanted == given) return from;
  memory to(wanted, Engine(), blocks.Get(index, wanted.get_size()));
  dnnl::reorder(from, to).execute(stream, from, to);
  return to;
}

ffi::Error Convolve(int64_t kind, bool bfloat16, ffi::Buffer<ffi::F32> first, ffi::Buffer<ffi::F32> second,
                    ffi::ResultBuffer<ffi::F32> result) {
  try {
    thread_local Blocks blocks;
    thread_local dnnl::stream stream(Engine());
    const auto a = first.dimensions(), b = second.dimensions();
    const int64_t in = kind == kGradientOfPicture ? b[2] : a[3];
    const int64_t out = kind == kGradientOfPicture ? a[3] : b[3];
    const auto plan = FindPlan(kind, bfloat16, {a[0], a[1], a[2], in, out});
    const Desc taken({a[0], in, a[1], a[2]}, Type::f32, Tag::nhwc);
    const Desc returned({a[0], out, a[1], a[2]}, Type::f32, Tag::nhwc);
    const Desc kernel({out, in, 3, 3}, Type::f32, Tag::hwio);

    const Desc first_given = kind == kGradientOfPicture ? returned : taken;
    const Desc second_given = kind == kGradientOfKernel ? returned : kernel;
    const Desc result_given = kind == kForward ? returned : kind == kGradientOfPicture ? taken : kernel;
    memory x = Converted(plan->first, first_given, first.untyped_data(), stream, blocks, 0);
    memory y = Converted(plan->second, second_given, second.untyped_data(), stream, blocks, 1);
    memory target(result_given, Engine(), result->untyped_data());
    const bool direct = plan->result == result_given;
    memory z = direct ? target : memory(plan->result, Engine(), blocks.Get(2, plan->result.get_size()));
    memory scratch(plan->scratch, Engine(), blocks.Get(3, plan->scratch.get_size()));

    std::unordered_map<int, memory> arguments = {{DNNL_ARG_SCRATCHPAD, scratch}};
    if (kind == kForward) {
      arguments.insert({{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, y}, {DNNL_ARG_DST, z}});
    } else if (kind == kGradientOfPicture) {
      arguments.insert({{DNNL_ARG_DIFF_DST, x}, {DNNL_ARG_WEIGHTS, y}, {DNNL_ARG_DIFF_SRC, z}});
    } else {
      arguments.insert({{DNNL_ARG_SRC, x}, {DNNL_ARG_DIFF_DST, y}, {DNNL_ARG_DIFF_WEIGHTS, z}});
    }
    plan->primitive.execute(stream, arguments);
    if (!direct) dnnl::reorder(z, target).execute(stream, z, target);
    stream.wait();
  } catch (const dnnl::error& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(GmsrmConvolve, Convolve,
                              ffi::Ffi::Bind()
                                  .Attr<int64_t>("kind")
                                  .Attr<bool>("bfloat16")
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
