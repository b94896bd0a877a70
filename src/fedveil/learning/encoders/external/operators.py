"""Operators that a graph from a file may use: they change nothing, and their output depends on their inputs alone.

Left out are control flow, randomness, operators that write into their inputs, and shapes that depend on values, apart
from those that a limit on time and memory covers.
"""

__all__ = ["ATEN", "ONNX"]

_ONNX = """
Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant
ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace Div Dropout Einsum Elu Equal Erf Exp Expand Flatten Floor
Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
LRN MatMul Max MaxPool Mean Min Mish Mod Mul Neg Not Or Pad Pow PRelu Range Reciprocal ReduceL1 ReduceL2
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
RMSNormalization Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign
SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
_ATEN = """
_adaptive_avg_pool2d _log_softmax _native_batch_norm_legit_no_training _softmax _to_copy _unsafe_view abs
adaptive_avg_pool2d adaptive_max_pool2d add addmm alias amax amin arange avg_pool2d baddbmm bmm cat ceil
chunk clamp clamp_max clamp_min clone constant_pad_nd contiguous conv2d convolution cos cumsum detach div elu
 embedding eq erf exp expand expand_as flatten flip floor floor_divide full full_like gather ge gelu glu
group_norm gt hardsigmoid hardswish hardtanh index index_select layer_norm le leaky_relu lift_fresh_copy
linalg_vector_norm linear log log_softmax logical_and logical_not logical_or lt masked_fill matmul max_pool2d
maximum mean minimum mish mm movedim mul narrow native_group_norm native_layer_norm ne neg new_ones new_zeros ones
ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu reciprocal reflection_pad2d relu relu6 repeat reshape
rms_norm roll round rsqrt rsub scalar_tensor scaled_dot_product_attention select selu sigmoid sign silu sin slice
softmax softplus split split_with_sizes sqrt square squeeze stack std std_mean sub sum t tanh tile to topk transpose
tril triu type_as unbind unflatten unfold unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var
var_mean view where zeros zeros_like
"""
ONNX = frozenset(_ONNX.split())
"""Of ONNX's standard domain."""
ATEN = frozenset(_ATEN.split())
"""Of PyTorch's ``aten``."""
