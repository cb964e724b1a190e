// One compiled kernel of the emulation: -DSOURCE="file.cu" -DENTRY=function -DPARAMETERS=struct.
#include SOURCE

namespace {

void body(const void* parameters) {
  ENTRY(*static_cast<const mmcontext::PARAMETERS*>(parameters));
}

}  // namespace

// Runs one launch; ranges are begin, end, writable for each operand. Null, or what went wrong.
extern "C" const char* launch(const unsigned* grid, unsigned block, unsigned shared_bytes,
                              const void* parameters, unsigned long long size,
                              const unsigned long long* ranges, int count) {
  emulation::Machine& m = emulation::machine;
  m = emulation::Machine();
  if (size != sizeof(mmcontext::PARAMETERS)) return "the parameter's size differs";
  for (int i = 0; i < count; ++i) {
    m.ranges.push_back({ranges[3 * i], ranges[3 * i + 1], ranges[3 * i + 2] != 0});
  }
  m.shared.assign(shared_bytes, 0);
  m.body = body;
  m.parameters = parameters;
  m.grid = {grid[0], grid[1], grid[2]};
  m.block_size = {block, 1, 1};
  for (unsigned z = 0; z < grid[2] && m.error.empty(); ++z) {
    for (unsigned y = 0; y < grid[1] && m.error.empty(); ++y) {
      for (unsigned x = 0; x < grid[0] && m.error.empty(); ++x) {
        m.block = {x, y, z};
        emulation::run_block(block);
      }
    }
  }
  static std::string error;
  error = m.error;
  return error.empty() ? nullptr : error.c_str();
}

extern "C" unsigned long long parameter_size() { return sizeof(mmcontext::PARAMETERS); }
