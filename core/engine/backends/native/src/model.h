// A model with the memory that it owns.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "exports.h"
#include "memory.h"
#include "run.h"
#include "table.h"

namespace quietchoir {

struct TeamDeleter {
  void operator()(Team* team) const { team_free(team); }
};

// A copy of some numbers in an arena, padded with zeros.
inline float* keep(Arena& arena, const float* values, int count) {
  float* copy = reinterpret_cast<float*>(arena.take(size_t(padded(count)) * 4));
  std::memset(copy, 0, size_t(padded(count)) * 4);
  std::memcpy(copy, values, size_t(count) * 4);
  return copy;
}

// Lets every member of a team run its share of a step or batch.
template <class R>
void run_all(Team& team, void (*share)(R& run, int member), R& run) {
  struct Call {
    void (*share)(R& run, int member);
    R* run;
  } call{share, &run};
  team_run(
      team,
      [](void* argument, int member) {
        const Call& call = *static_cast<Call*>(argument);
        call.share(*call.run, member);
      },
      &call);
}

// Whether raw rows of `columns` columns of an embedding can be read. False after a complaint.
bool check_rows(int kind, int columns, size_t row_bytes);

// Packs a whole matrix into an arena, all members of the team together. False after a complaint.
bool pack_matrix(Team& team, Arena& arena, Matrix& matrix, int kind, int rows, int columns,
                 const uint8_t* raw, size_t row_bytes);

struct OwnedModel : Model {
  std::vector<Layer> owned_layers;
  std::vector<std::vector<Matrix>> experts;  // by layer; empty where there are none
  std::vector<float*> vectors;
  Arena arena;
  ScratchBuffer scratch, partials;
  std::unique_ptr<Team, TeamDeleter> team;
  const Table* table = nullptr;
  std::mutex one_step;  // a step uses the team and the scratch buffers alone

  float* keep(const float* values, int count) { return quietchoir::keep(arena, values, count); }
};

struct OwnedAdapter : Adapter {
  const OwnedModel* model = nullptr;
  std::vector<LoraFactors> owned;
  std::vector<std::unique_ptr<uint16_t[]>> numbers;
  std::vector<std::unique_ptr<float[]>> outputs;
};

// What went wrong in this thread's last call; shown to whoever asks by quietchoir_problem.
void complain(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Rows and columns of one matrix of a layer.
inline int rows_of(const Shape& s, const Layer& layer, int role) {
  const int key = s.latent_size ? own_key_size(s) : layer.head_dim;
  const int value = s.value_dim ? s.value_dim : layer.head_dim;
  return role == QUERY                ? s.num_heads * layer.head_dim
         : role == KEY                ? layer.kv_heads * key
         : role == VALUE              ? layer.kv_heads * value
         : role == GATE || role == UP ? s.intermediate_size
                                      : s.hidden_size;
}
inline int columns_of(const Shape& s, const Layer& layer, int role) {
  if (s.latent_size && (role == KEY || role == VALUE)) return s.latent_size;
  if (s.query_rank && role == QUERY) return s.query_rank;
  return role == OUTPUT ? s.num_heads * (s.value_dim ? s.value_dim : layer.head_dim)
         : role == DOWN ? s.intermediate_size
                        : s.hidden_size;
}

}  // namespace quietchoir
