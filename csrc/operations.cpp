#include "operations.h"

#include <initializer_list>
#include <sstream>
#include <string>
#include <unordered_map>

namespace fused_sigmoid::consumers {
namespace {

using Table = std::unordered_map<std::string, Operation>;

// White space separates the names of operations that are alike.
struct Row {
  Operation operation;
  const char* names;
};

Table table_of(std::initializer_list<Row> rows) {
  Table table;
  for (const Row& row : rows) {
    std::istringstream names(row.names);
    for (std::string name; names >> name;) table.emplace(name, row.operation);
  }
  return table;
}

constexpr Operation divides(int8_t input, Role role = Role::layer, int8_t inputs = all) {
  return {role, Detail::none, input, false, inputs};
}

constexpr Operation divides_at_one(int8_t input, Role role = Role::layer) {
  return {role, Detail::none, input, true};
}

constexpr Operation function_of(Role role) { return {role, Detail::function}; }

// "Sub" stands for the node "SubBackward0" and all other overloads, and "Pow1" for "PowBackward1",
// which differs from "Pow". The names are those of torch's derivatives.yaml, in torch 2.11 to 2.14.
constexpr std::initializer_list<Row> operations = {
    // The first is nn.BCELoss, the second the node of its own gradient.
    {{Role::layer, Detail::bce, 0, true}, "BinaryCrossEntropy"},
    {{Role::layer, Detail::second_bce, 1, true}, "BinaryCrossEntropyBackward"},
    {divides_at_one(0), "Acos Acosh Asin Atanh Erfinv Logit SpecialNdtri"},
    {divides_at_one(0, Role::power), "Tan"},
    {divides_at_one(every), "ForeachAcos ForeachAsin"},
    {divides(0), R"(
      CholeskyInverse Digamma Lgamma LinalgCholeskyEx LinalgDet LinalgInvEx LinalgLuFactorEx
      LinalgPinv LinalgSlogdet LinalgSolveEx LinalgSolveTriangular Mvlgamma Polygamma SpecialEntr
      SpecialXlog1Py1 Xlogy1)"},
    {divides(0, Role::curve), "Log Log10 Log1P Log2 Reciprocal Rsqrt"},
    {divides(0, Role::power), "Sqrt"},
    {divides(0, Role::power, 1), "Pow1"},
    {divides(1, Role::linear, 1), "Div SpecialXlog1Py Xlogy"},
    {divides(2, Role::turning, 2), "Addcdiv"},
    {divides(every), R"(
      Atan2 CholeskySolve ForeachLgamma ForeachReciprocal ForeachRsqrt LinalgLstsq LinalgLuSolve)"},
    {divides(every, Role::curve), "ForeachLog ForeachLog10 ForeachLog1P ForeachLog2"},
    {divides(every, Role::power), "ForeachPow ForeachSqrt"},
    {divides(every, Role::turning), "ForeachAddcdiv ForeachDiv"},
    // Here the base alone is a tensor; in Pow1 the exponent is one as well, in Pow2 it alone is.
    {{Role::power, Detail::numbers, 0, false, 1}, "Pow"},
    {{Role::linear, Detail::numbers}, "Add Mul"},
    {{Role::structural, Detail::numbers}, "IndexPut"},
    // The second input says where in an image to read, and is no weight.
    {{Role::linear, Detail::none, none, false, 1}, "CudnnGridSampler GridSampler2D GridSampler3D"},
    {{Role::structural}, R"(
      AdaptiveMaxPool2D AdaptiveMaxPool3D Alias Amax Amin Aminmax AsStrided AsStridedScatter
      BlockDiag Cat ChannelShuffle Clamp ClampMax ClampMin Clone Coalesce Complex Conj ConjPhysical
      ConstantPadNd Cummax Cummin DiagEmbed Diagonal DiagonalBackward DiagonalScatter Embedding
      Expand Fill1 Fill3 Flip Fmax Fmin ForeachClampMax ForeachClampMin ForeachClone ForeachMax
      ForeachMaximum ForeachMinimum FractionalMaxPool2D FractionalMaxPool3D Gather Hardtanh Im2Col
      Index IndexCopy IndexFill IndexSelect Kthvalue LazyClone Lift LiftFresh MaskedFill
      MaskedScatter MaskedScatterBackward MaskedSelect Max MaxPool2D MaxPool2DWithIndices
      MaxPool3DWithIndices MaxUnpool2D MaxUnpool3D Maximum Median Min Minimum MkldnnMaxPool2D
      MkldnnMaxPool3D MkldnnReshape Mode NanToNum Nanmedian NarrowCopy NestedFromPadded
      NestedFromPaddedTensor NestedGetValues NestedTensorFromMask NestedTensorFromTensorList
      NestedViewFromBuffer NestedViewFromJagged PackPaddedSequence Permute PinMemory PixelShuffle
      PixelUnshuffle ReflectionPad1D ReflectionPad2D ReflectionPad3D Relu Repeat ReplicationPad1D
      ReplicationPad2D ReplicationPad3D ReshapeAlias ReshapeCopy Roll Rot90 Scatter Select
      SelectBackward SelectScatter Slice SliceBackward SliceInverse SliceScatter Sort
      SparseCompressedTensor SparseCooTensorWithDimsAndTensors SparseMask Split SplitWithSizes
      Squeeze Stack T Take Threshold ToCopy ToDense ToMkldnn ToPaddedTensor ToSparse ToSparseBsc
      ToSparseBsr ToSparseCsc ToSparseCsr Topk Transpose Tril Triu Unbind Unfold UnfoldBackward
      UnsafeIndex UnsafeMaskedIndex UnsafeSplit UnsafeSplitWithSizes UnsafeView Unsqueeze
      UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact1D
      UpsampleNearestExact2D UpsampleNearestExact3D Values View ViewAsComplex ViewAsReal Where)"},
    {{Role::linear}, R"(
      Col2Im Cumprod Cumsum Deg2Rad EmbeddingBag FusedDropout IndexPutImpl IndexReduce Ldexp
      NativeDropout Prod Put Rad2Deg ScatterAdd ScatterReduce SegmentReduce SpecialXlog1Py2
      UnsafeIndexPut UnsafeMaskedIndexPutAccumulate UpsampleBilinear2D UpsampleBilinear2DAa
      UpsampleLinear1D UpsampleTrilinear3D Xlogy2)"},
    {{Role::turning}, R"(
      Addcmul Div1 ForeachAdd ForeachAddcmul ForeachLerp ForeachMul ForeachNeg ForeachSub IndexAdd
      Lerp Mul1 Neg NegView NllLoss NllLoss2D Rsub Sub)"},
    // A norm counts as a sum: it is 0 where all elements are.
    {{Role::reducing}, R"(
      AdaptiveAvgPool2D AdaptiveAvgPool3D AvgPool2D AvgPool3D ForeachNorm LinalgVectorNorm Mean
      MkldnnAdaptiveAvgPool2D Nansum Norm SparseSum Sum Trace)"},
    {{Role::mixing}, R"(
      Addbmm Addmm Addmv Addr Baddbmm Bmm ConvDepthwise2D ConvDepthwise3D ConvTbc Convolution
      ConvolutionOverrideable CudnnConvolution CudnnConvolutionTranspose Dot FftC2C FftC2R FftR2C
      ForeachMm GroupedMm LinalgCross Linear Matmul MiopenConvolution MiopenConvolutionTranspose
      MiopenDepthwiseConvolution MkldnnConvolution MkldnnLinear Mm MpsConvolution
      MpsConvolutionTranspose Mv NnpackSpatialConvolution ScaledDotProductCudnnAttention
      ScaledDotProductEfficientAttention ScaledDotProductFlashAttention
      ScaledDotProductFlashAttentionForCpu ScaledDotProductFusedAttentionOverrideable SlowConv2D
      SlowConv3D SlowConvDilated2D SlowConvDilated3D SlowConvTranspose2D SlowConvTranspose3D
      SparseAddmm SparseMmReduceImpl SparseSampledAddmm SparseSparseMatmul Trilinear
      UpsampleBicubic2D UpsampleBicubic2DAa UpsampleLanczos2DAa Vdot)"},
    // These are multiples of their input on one side of 0, the input but for a period, or 0 where
    // the input is. An activation that protects what lies behind it is none of them.
    {{Role::power}, R"(
      Abs Asinh Celu Copysign Elu Erf Expm1 Fmod ForeachAbs ForeachErf ForeachExpm1 ForeachSin
      ForeachSinh ForeachTan Frac Hardshrink Hypot LeakyRelu PreluKernel Remainder Renorm
      RreluWithNoise RreluWithNoiseFunctional Sin Sinh Softshrink)"},
    {{Role::curve}, "Cdist Exp Exp2 Logaddexp Logaddexp2 Logsumexp Pow2 Softplus"},
};

// A Function's name in Python stands here without "Backward" or "GeneratedBackward" at its end.
constexpr std::initializer_list<Row> functions = {
    // These are hooks of modules, or belong to data parallelism, to distributed tensors and their
    // collectives, or to jagged and masked tensors.
    {function_of(Role::structural), R"(
      BackwardHookFunction Broadcast Constructor Gather
      GeneratedBackwardFor__c10d_functional__wrap_tensor_autograd_default
      GeneratedBackwardFor__c10d_functional_all_gather_into_tensor_default
      GeneratedBackwardFor__c10d_functional_all_to_all_single_default
      GeneratedBackwardFor__c10d_functional_autograd_all_gather_into_tensor_default
      GeneratedBackwardFor__c10d_functional_autograd_all_to_all_single_default
      GeneratedBackwardFor__c10d_functional_wait_tensor_default GetData NestedRedistribute
      Redistribute RegisterPostBackwardFunction RegisterPreBackwardFunction Resize Scatter Type
      ViewBufferFromNested ViewNestedFromBuffer _AllGather _AllGatherBase _AlltoAll _AlltoAllSingle
      _Broadcast _DDPSink _FromTorchTensor _Gather _MaskedContiguous _MaskedToDense _MaskedToSparse
      _MaskedToSparseCsr _MaskedWhere _Scatter _ToTorchTensor)"},
    {function_of(Role::linear), R"(
      GeneratedBackwardFor__c10d_functional_all_reduce_default
      GeneratedBackwardFor__c10d_functional_autograd_reduce_scatter_tensor_default
      GeneratedBackwardFor__c10d_functional_reduce_scatter_tensor_default _AllReduce _Reduce
      _Reduce_Scatter)"},
};

}  // namespace

Operation operation_named(std::string_view name) {
  static const Table table = table_of(operations);
  constexpr std::string_view suffix = "Backward";
  const size_t end = name.rfind(suffix);
  if (end == std::string_view::npos) return {};
  const std::string function(name.substr(0, end));
  std::string number(name.substr(end + suffix.size()));
  number = number.substr(0, number.find_first_not_of("0123456789"));
  auto found = number == "0" ? table.end() : table.find(function + number);
  if (found == table.end()) found = table.find(function);
  return found == table.end() ? Operation() : found->second;
}

Operation function_named(std::string_view name) {
  static const Table table = table_of(functions);
  for (const std::string_view ending : {"Backward", "Generated"}) {
    const size_t start = name.rfind(ending);
    const bool is_last = start != std::string_view::npos && start + ending.size() == name.size();
    if (is_last) name = name.substr(0, start);
  }
  const auto found = table.find(std::string(name));
  return found == table.end() ? function_of(Role::unknown) : found->second;
}

}  // namespace fused_sigmoid::consumers
