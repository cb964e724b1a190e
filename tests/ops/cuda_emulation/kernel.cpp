// One kernel of the emulation: -DSOURCE="file.cu" -DENTRY=function -DPARAMETERS=struct.
#include SOURCE

extern "C" const char* run_launch(void (*body)(const void*), const unsigned* grid, unsigned threads,
                                  unsigned shared_bytes, const void* parameters,
                                  const unsigned long long* ranges, int count);

extern "C" const char* launch(const unsigned* grid, unsigned threads, unsigned shared_bytes,
                              const void* parameters, unsigned long long size,
                              const unsigned long long* ranges, int count) {
  if (size != sizeof(mmcontext::PARAMETERS)) return "the parameter's size differs";
  const auto body = [](const void* all) {
    ENTRY(*static_cast<const mmcontext::PARAMETERS*>(all));
  };
  return run_launch(body, grid, threads, shared_bytes, parameters, ranges, count);
}

extern "C" unsigned long long parameter_size() { return sizeof(mmcontext::PARAMETERS); }
