// The part of onnxruntime's C API that is used here, declared because no Python package ships its
// header. The ABI is stable: a table of functions, in which every entry keeps its index.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxruntime {

// API version: that of onnxruntime 1.17, the first whose kernels can use the session's threads.
constexpr uint32_t kVersion = 17;

struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;

enum ErrorCode { kFail = 1, kInvalidArgument = 2 };
enum ElementType { kFloat = 1, kFloat16 = 10, kDouble = 11 };

// Functions of the table, by index. Those that return a status return null on success.
struct Interface {
  void* functions[275];

  template <class Function> Function* at(size_t place) const {
    return reinterpret_cast<Function*>(functions[place]);
  }
  Status* create_status(ErrorCode code, const char* message) const {
    return at<Status*(ErrorCode, const char*)>(0)(code, message);
  }
  Status* create_domain(const char* name, Domain** domain) const {
    return at<Status*(const char*, Domain**)>(26)(name, domain);
  }
  Status* add_operator(Domain* domain, const struct CustomOperator* custom) const {
    return at<Status*(Domain*, const struct CustomOperator*)>(27)(domain, custom);
  }
  Status* add_domain(SessionOptions* options, Domain* domain) const {
    return at<Status*(SessionOptions*, Domain*)>(28)(options, domain);
  }
  Status* data(Value* value, void** pointer) const {
    return at<Status*(Value*, void**)>(51)(value, pointer);
  }
  Status* dimensions(const TensorInfo* info, size_t* count) const {
    return at<Status*(const TensorInfo*, size_t*)>(61)(info, count);
  }
  Status* shape(const TensorInfo* info, int64_t* sizes, size_t count) const {
    return at<Status*(const TensorInfo*, int64_t*, size_t)>(62)(info, sizes, count);
  }
  Status* tensor_info(const Value* value, TensorInfo** info) const {
    return at<Status*(const Value*, TensorInfo**)>(65)(value, info);
  }
  Status* integer(const KernelInfo* info, const char* name, int64_t* value) const {
    return at<Status*(const KernelInfo*, const char*, int64_t*)>(86)(info, name, value);
  }
  Status* input(const KernelContext* context, size_t index, const Value** value) const {
    return at<Status*(const KernelContext*, size_t, const Value**)>(90)(context, index, value);
  }
  Status* output(KernelContext* context, size_t index, const int64_t* sizes, size_t count,
                 Value** value) const {
    return at<Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(
        context, index, sizes, count, value);
  }
  void release(Status* status) const { at<void(Status*)>(93)(status); }
  void release(TensorInfo* info) const { at<void(TensorInfo*)>(99)(info); }
  Status* integers(const KernelInfo* info, const char* name, int64_t* values,
                   size_t* count) const {
    return at<Status*(const KernelInfo*, const char*, int64_t*, size_t*)>(163)(info, name, values,
                                                                              count);
  }
  // Calls work(of, i) for 0 <= i < count on the session's threads.
  Status* parallel_for(const KernelContext* context, void (*work)(void* of, size_t i),
                       size_t count, void* of) const {
    return at<Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(
        context, work, count, 0, of);
  }
};

struct InterfaceBase {
  const Interface* (*get)(uint32_t version);  // null if onnxruntime is older
  const char* (*version)();
};

// A custom operator. The functions left null are not needed by an operator with a fixed number of
// operands of fixed types.
struct CustomOperator {
  uint32_t version;
  void* (*create)(const CustomOperator*, const Interface*, const KernelInfo*);
  const char* (*name)(const CustomOperator*);
  const char* (*provider)(const CustomOperator*);
  ElementType (*input_type)(const CustomOperator*, size_t);
  size_t (*inputs)(const CustomOperator*);
  ElementType (*output_type)(const CustomOperator*, size_t);
  size_t (*outputs)(const CustomOperator*);
  void (*compute)(void* kernel, KernelContext*);
  void (*destroy)(void* kernel);
  int (*input_kind)(const CustomOperator*, size_t);    // 0: required
  int (*output_kind)(const CustomOperator*, size_t);
  int (*input_memory)(const CustomOperator*, size_t);  // 0: the provider's
  void* for_lists[4];
  Status* (*create_or_fail)(const CustomOperator*, const Interface*, const KernelInfo*, void**);
  Status* (*compute_or_fail)(void* kernel, KernelContext*);
  void* infer_shape;
  int (*first_version)(const CustomOperator*);
  int (*last_version)(const CustomOperator*);
};

}  // namespace onnxruntime
