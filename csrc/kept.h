// A tensor that a node of the autograd graph keeps for its backward pass.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/hash.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <optional>

namespace fused_sigmoid {

class Kept {
 public:
  // Nothing is kept.
  Kept() = default;

  // A tensor that no one but the node holds, or the node's own output.
  Kept(const at::Tensor& tensor, bool is_output, bool is_in_place_on_view = false)
      : variable(tensor, is_output, is_in_place_on_view),
        counter_(torch::autograd::impl::version_counter(tensor)),
        version_(counter_.current_version()) {}

  // A tensor that others have: they can free its memory, or give it other memory or another shape
  // by `x.data = y`, which are no writes that versions count.
  static Kept watched(const at::Tensor& tensor, bool is_output, bool has_memory) {
    Kept kept(tensor, is_output);
    if (has_memory) {
      kept.storage_ = tensor.storage().getWeakStorageImpl();
      kept.bytes_ = tensor.storage().nbytes();
      kept.layout_ = layout_of(tensor);
    }
    return kept;
  }

  explicit operator bool() const { return counter_.enabled(); }

  // Whether nobody has written to it since, as far as versions tell, nor taken its memory away. A
  // SavedVariable says so only when it is unpacked, by an error, and nothing where hooks have
  // packed it.
  bool is_unchanged() const {
    if (!*this || counter_.current_version() != version_) return false;
    const auto tensor = variable.get_raw_data();
    if (bytes_ == 0 || !is_at_hand(tensor)) return true;
    // The weak reference keeps the address from being given to another storage.
    return tensor->storage().unsafeGetStorageImpl() == storage_._unsafe_get_target() &&
           tensor->storage().nbytes() >= bytes_ && layout_of(*tensor) == layout_;
  }

  // Whether it still has the history that it was kept with, which detach_() takes from it.
  bool has_history() const {
    const auto tensor = variable.get_raw_data();
    return !is_at_hand(tensor) || tensor->requires_grad();
  }

  torch::autograd::SavedVariable variable;

 private:
  // It cannot be looked at where hooks have packed it, history and all, or it was given back.
  static bool is_at_hand(const std::optional<at::Tensor>& tensor) {
    return tensor.has_value() && tensor->defined();
  }

  // A number that tells which part of a storage a tensor is and how it is laid out there.
  static size_t layout_of(const at::Tensor& tensor) {
    size_t layout = c10::get_hash(tensor.storage_offset(), tensor.scalar_type());
    for (const at::IntArrayRef numbers : {tensor.sizes(), tensor.strides()}) {
      for (const int64_t number : numbers)
        layout = c10::hash_combine(layout, c10::get_hash(number));
    }
    return layout;
  }

  c10::VariableVersion counter_{c10::VariableVersion::DISABLED};
  uint32_t version_ = 0;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_{c10::intrusive_ptr<c10::StorageImpl>()};
  size_t bytes_ = 0, layout_ = 0;
};

}  // namespace fused_sigmoid
