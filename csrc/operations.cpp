#include "operations.h"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <unordered_map>

namespace fused_sigmoid::consumers {
namespace {

using Table = std::unordered_map<std::string_view, Operation>;

constexpr Operation divides(int8_t input, Role role = Role::layer, int8_t inputs = all) {
  return {role, input, false, inputs};
}
constexpr Operation divides_at_one(int8_t input) { return {Role::layer, input, true}; }

// Without "Backward" and the number, which tells the overloads of a function apart, except where
// these differ. Read in torch's derivatives.yaml; the same in torch 2.11 to 2.14.
const Table& operations() {
  static const Table table = [] {
    Table made = {
        // nn.BCELoss and the node of its own gradient.
        {"BinaryCrossEntropy", {Role::layer, 0, true, all, Detail::bce}},
        {"BinaryCrossEntropyBackward", {Role::layer, 1, true, all, Detail::second_bce}},
        {"Acos", divides_at_one(0)},
        {"Acosh", divides_at_one(0)},
        {"Asin", divides_at_one(0)},
        {"Atanh", divides_at_one(0)},
        {"Erfinv", divides_at_one(0)},
        {"Logit", divides_at_one(0)},
        {"SpecialNdtri", divides_at_one(0)},
        {"Tan", {Role::power, 0, true}},
        {"ForeachAcos", divides_at_one(every)},
        {"ForeachAsin", divides_at_one(every)},
        {"Addcdiv", divides(2, Role::turning, 2)},
        {"Digamma", divides(0)},
        {"Div", divides(1, Role::linear, 1)},
        {"ForeachAddcdiv", divides(every, Role::turning)},
        {"ForeachDiv", divides(every, Role::turning)},
        {"ForeachLgamma", divides(every)},
        {"ForeachLog", divides(every, Role::curve)},
        {"ForeachLog10", divides(every, Role::curve)},
        {"ForeachLog1P", divides(every, Role::curve)},
        {"ForeachLog2", divides(every, Role::curve)},
        {"ForeachPow", divides(every, Role::power)},
        {"ForeachReciprocal", divides(every)},
        {"ForeachRsqrt", divides(every)},
        {"ForeachSqrt", divides(every, Role::power)},
        {"Atan2", divides(every)},
        {"CholeskyInverse", divides(0)},
        {"CholeskySolve", divides(every)},
        {"Lgamma", divides(0)},
        {"LinalgCholeskyEx", divides(0)},
        {"LinalgDet", divides(0)},
        {"LinalgInvEx", divides(0)},
        {"LinalgLstsq", divides(every)},
        {"LinalgLuFactorEx", divides(0)},
        {"LinalgLuSolve", divides(every)},
        {"LinalgPinv", divides(0)},
        {"LinalgSlogdet", divides(0)},
        {"LinalgSolveEx", divides(0)},
        {"LinalgSolveTriangular", divides(0)},
        {"Log", divides(0, Role::curve)},
        {"Log10", divides(0, Role::curve)},
        {"Log1P", divides(0, Role::curve)},
        {"Log2", divides(0, Role::curve)},
        {"Mvlgamma", divides(0)},
        {"Polygamma", divides(0)},
        {"Reciprocal", divides(0, Role::curve)},
        {"Rsqrt", divides(0, Role::curve)},
        {"SpecialEntr", divides(0)},
        {"SpecialXlog1Py", divides(1, Role::linear, 1)},
        {"SpecialXlog1Py1", divides(0)},
        {"SpecialXlog1Py2", {Role::linear}},
        {"Sqrt", divides(0, Role::power)},
        {"Xlogy", divides(1, Role::linear, 1)},
        {"Xlogy1", divides(0)},
        {"Xlogy2", {Role::linear}},
        {"Exp", {Role::curve}},
        {"Exp2", {Role::curve}},
        // To a number, to the power of a tensor, and a number to the power of a tensor.
        {"Pow", {Role::power, 0, false, 1, Detail::power}},
        {"Pow1", divides(0, Role::power, 1)},
        {"Pow2", {Role::curve}},
        {"Add", {Role::linear, none, false, all, Detail::add}},
        {"IndexPut", {Role::structural, none, false, all, Detail::accumulate}},
        {"Mul", {Role::linear, none, false, all, Detail::multiply}},
        // Where in an image, the second input, is no weight.
        {"GridSampler2D", {Role::linear, none, false, 1}},
        {"GridSampler3D", {Role::linear, none, false, 1}},
        {"CudnnGridSampler", {Role::linear, none, false, 1}},
    };
    const auto add = [&](Role role, std::initializer_list<std::string_view> names) {
      for (const std::string_view name : names) made.emplace(name, Operation{role});
    };
    add(Role::structural, {"AdaptiveMaxPool2D",
                           "AdaptiveMaxPool3D",
                           "Alias",
                           "Amax",
                           "Amin",
                           "Aminmax",
                           "AsStrided",
                           "AsStridedScatter",
                           "BlockDiag",
                           "Cat",
                           "ChannelShuffle",
                           "Clamp",
                           "ClampMax",
                           "ClampMin",
                           "Clone",
                           "Coalesce",
                           "Complex",
                           "Conj",
                           "ConjPhysical",
                           "ConstantPadNd",
                           "Cummax",
                           "Cummin",
                           "DiagEmbed",
                           "Diagonal",
                           "DiagonalBackward",
                           "DiagonalScatter",
                           "Embedding",
                           "Expand",
                           "Fill1",
                           "Fill3",
                           "Flip",
                           "Fmax",
                           "Fmin",
                           "ForeachClampMax",
                           "ForeachClampMin",
                           "ForeachClone",
                           "ForeachMax",
                           "ForeachMaximum",
                           "ForeachMinimum",
                           "FractionalMaxPool2D",
                           "FractionalMaxPool3D",
                           "Gather",
                           "Hardtanh",
                           "Im2Col",
                           "Index",
                           "IndexCopy",
                           "IndexFill",
                           "IndexSelect",
                           "Kthvalue",
                           "LazyClone",
                           "Lift",
                           "LiftFresh",
                           "MaskedFill",
                           "MaskedScatter",
                           "MaskedScatterBackward",
                           "MaskedSelect",
                           "Max",
                           "MaxPool2D",
                           "MaxPool2DWithIndices",
                           "MaxPool3DWithIndices",
                           "MaxUnpool2D",
                           "MaxUnpool3D",
                           "Maximum",
                           "Median",
                           "Min",
                           "Minimum",
                           "MkldnnMaxPool2D",
                           "MkldnnMaxPool3D",
                           "MkldnnReshape",
                           "Mode",
                           "NanToNum",
                           "Nanmedian",
                           "NarrowCopy",
                           "NestedFromPadded",
                           "NestedFromPaddedTensor",
                           "NestedGetValues",
                           "NestedTensorFromMask",
                           "NestedTensorFromTensorList",
                           "NestedViewFromBuffer",
                           "NestedViewFromJagged",
                           "PackPaddedSequence",
                           "Permute",
                           "PinMemory",
                           "PixelShuffle",
                           "PixelUnshuffle",
                           "ReflectionPad1D",
                           "ReflectionPad2D",
                           "ReflectionPad3D",
                           "Relu",
                           "Repeat",
                           "ReplicationPad1D",
                           "ReplicationPad2D",
                           "ReplicationPad3D",
                           "ReshapeAlias",
                           "ReshapeCopy",
                           "Roll",
                           "Rot90",
                           "Scatter",
                           "Select",
                           "SelectBackward",
                           "SelectScatter",
                           "Slice",
                           "SliceBackward",
                           "SliceInverse",
                           "SliceScatter",
                           "Sort",
                           "SparseCompressedTensor",
                           "SparseCooTensorWithDimsAndTensors",
                           "SparseMask",
                           "Split",
                           "SplitWithSizes",
                           "Squeeze",
                           "Stack",
                           "T",
                           "Take",
                           "Threshold",
                           "ToCopy",
                           "ToDense",
                           "ToMkldnn",
                           "ToPaddedTensor",
                           "ToSparse",
                           "ToSparseBsc",
                           "ToSparseBsr",
                           "ToSparseCsc",
                           "ToSparseCsr",
                           "Topk",
                           "Transpose",
                           "Tril",
                           "Triu",
                           "Unbind",
                           "Unfold",
                           "UnfoldBackward",
                           "UnsafeIndex",
                           "UnsafeMaskedIndex",
                           "UnsafeSplit",
                           "UnsafeSplitWithSizes",
                           "UnsafeView",
                           "Unsqueeze",
                           "UpsampleNearest1D",
                           "UpsampleNearest2D",
                           "UpsampleNearest3D",
                           "UpsampleNearestExact1D",
                           "UpsampleNearestExact2D",
                           "UpsampleNearestExact3D",
                           "Values",
                           "View",
                           "ViewAsComplex",
                           "ViewAsReal",
                           "Where"});
    add(Role::linear, {"Col2Im",
                       "Cumprod",
                       "Cumsum",
                       "Deg2Rad",
                       "EmbeddingBag",
                       "FusedDropout",
                       "IndexPutImpl",
                       "IndexReduce",
                       "Ldexp",
                       "NativeDropout",
                       "Prod",
                       "Put",
                       "Rad2Deg",
                       "ScatterAdd",
                       "ScatterReduce",
                       "SegmentReduce",
                       "UnsafeIndexPut",
                       "UnsafeMaskedIndexPutAccumulate",
                       "UpsampleBilinear2D",
                       "UpsampleBilinear2DAa",
                       "UpsampleLinear1D",
                       "UpsampleTrilinear3D"});
    // Norms are 0 where all elements are; the others tend to 1 as what they are of does.
    add(Role::reducing, {"LinalgVectorNorm", "Norm", "ForeachNorm"});
    add(Role::curve, {"Logsumexp", "Logaddexp", "Logaddexp2", "Softplus", "Cdist"});
    // Of numbers on one side of 0 multiples of them, or the numbers but for a period; or 0 where
    // the numbers are, and no activation that protects what lies behind it.
    add(Role::power, {"Abs",          "Asinh",
                      "Celu",         "Copysign",
                      "Elu",          "Erf",
                      "Expm1",        "Fmod",
                      "ForeachAbs",   "ForeachErf",
                      "ForeachExpm1", "ForeachSin",
                      "ForeachSinh",  "ForeachTan",
                      "Frac",         "Hardshrink",
                      "Hypot",        "LeakyRelu",
                      "PreluKernel",  "Remainder",
                      "Renorm",       "RreluWithNoise",
                      "Sin",          "Sinh",
                      "Softshrink",   "RreluWithNoiseFunctional"});
    add(Role::turning, {"Addcmul", "Div1", "ForeachAdd", "ForeachAddcmul", "ForeachLerp",
                        "ForeachMul", "ForeachNeg", "ForeachSub", "IndexAdd", "Lerp", "Mul1", "Neg",
                        "NegView", "NllLoss", "NllLoss2D", "Rsub", "Sub"});
    add(Role::reducing, {"AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AvgPool2D", "AvgPool3D", "Mean",
                         "MkldnnAdaptiveAvgPool2D", "Nansum", "SparseSum", "Sum", "Trace"});
    add(Role::mixing, {"Addbmm",
                       "Addmm",
                       "Addmv",
                       "Addr",
                       "Baddbmm",
                       "Bmm",
                       "ConvDepthwise2D",
                       "ConvDepthwise3D",
                       "ConvTbc",
                       "Convolution",
                       "ConvolutionOverrideable",
                       "CudnnConvolution",
                       "CudnnConvolutionTranspose",
                       "Dot",
                       "FftC2C",
                       "FftC2R",
                       "FftR2C",
                       "ForeachMm",
                       "GroupedMm",
                       "LinalgCross",
                       "Linear",
                       "Matmul",
                       "MiopenConvolution",
                       "MiopenConvolutionTranspose",
                       "MiopenDepthwiseConvolution",
                       "MkldnnConvolution",
                       "MkldnnLinear",
                       "Mm",
                       "MpsConvolution",
                       "MpsConvolutionTranspose",
                       "Mv",
                       "NnpackSpatialConvolution",
                       "ScaledDotProductCudnnAttention",
                       "ScaledDotProductEfficientAttention",
                       "ScaledDotProductFlashAttention",
                       "ScaledDotProductFlashAttentionForCpu",
                       "ScaledDotProductFusedAttentionOverrideable",
                       "SlowConv2D",
                       "SlowConv3D",
                       "SlowConvDilated2D",
                       "SlowConvDilated3D",
                       "SlowConvTranspose2D",
                       "SlowConvTranspose3D",
                       "SparseAddmm",
                       "SparseMmReduceImpl",
                       "SparseSampledAddmm",
                       "SparseSparseMatmul",
                       "Trilinear",
                       "UpsampleBicubic2D",
                       "UpsampleBicubic2DAa",
                       "UpsampleLanczos2DAa",
                       "Vdot"});
    return made;
  }();
  return table;
}

}  // namespace

Operation operation_named(std::string_view name) {
  constexpr std::string_view suffix = "Backward";
  const size_t end = name.rfind(suffix);
  if (end == std::string_view::npos) return {};
  std::string_view number = name.substr(end + suffix.size());
  number = number.substr(0, number.find_first_not_of("0123456789"));
  const std::string_view function = name.substr(0, end);
  const Table& table = operations();
  if (!number.empty() && number != "0") {
    const auto overload = table.find(std::string(function) + std::string(number));
    if (overload != table.end()) return overload->second;
  }
  const auto found = table.find(function);
  return found == table.end() ? Operation() : found->second;
}

Operation function_named(std::string_view name) {
  static const Table table = [] {
    Table made;
    const auto add = [&](Role role, std::initializer_list<std::string_view> names) {
      for (const std::string_view function : names) {
        made.emplace(function, Operation{role, none, false, all, Detail::function});
      }
    };
    // Hooks of modules; data parallelism of either kind; distributed tensors and their collectives;
    // data parallelism in one process; jagged and masked tensors.
    add(Role::structural,
        {"BackwardHookFunction",
         "_DDPSink",
         "RegisterPostBackwardFunction",
         "RegisterPreBackwardFunction",
         "_FromTorchTensor",
         "_ToTorchTensor",
         "Redistribute",
         "NestedRedistribute",
         "_AllGather",
         "_AllGatherBase",
         "_Gather",
         "_Scatter",
         "_Broadcast",
         "_AlltoAll",
         "_AlltoAllSingle",
         "Scatter",
         "Gather",
         "Broadcast",
         "ViewBufferFromNested",
         "ViewNestedFromBuffer",
         "GetData",
         "Constructor",
         "_MaskedToDense",
         "_MaskedWhere",
         "_MaskedContiguous",
         "_MaskedToSparse",
         "_MaskedToSparseCsr",
         "Resize",
         "Type",
         "GeneratedBackwardFor__c10d_functional__wrap_tensor_autograd_default",
         "GeneratedBackwardFor__c10d_functional_wait_tensor_default",
         "GeneratedBackwardFor__c10d_functional_all_gather_into_tensor_default",
         "GeneratedBackwardFor__c10d_functional_all_to_all_single_default",
         "GeneratedBackwardFor__c10d_functional_autograd_all_gather_into_tensor_default",
         "GeneratedBackwardFor__c10d_functional_autograd_all_to_all_single_default"});
    add(Role::linear,
        {"_AllReduce", "_Reduce", "_Reduce_Scatter",
         "GeneratedBackwardFor__c10d_functional_all_reduce_default",
         "GeneratedBackwardFor__c10d_functional_reduce_scatter_tensor_default",
         "GeneratedBackwardFor__c10d_functional_autograd_reduce_scatter_tensor_default"});
    return made;
  }();
  for (const std::string_view ending : {"Backward", "Generated"}) {
    const size_t size = name.size() - std::min(name.size(), ending.size());
    if (name.substr(size) == ending) name.remove_suffix(ending.size());
  }
  const auto found = table.find(name);
  if (found != table.end()) return found->second;
  return {Role::unknown, none, false, all, Detail::function};
}

}  // namespace fused_sigmoid::consumers
