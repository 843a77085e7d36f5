// One step: everything that a caller names is checked, memory is laid out, and the team runs it.
#include <exception>

#include "model.h"

namespace quietchoir {
namespace {

constexpr int LOOK_QUERIES = 24;  // queries of one look: enough to share a block's keys, few enough for the first cache

bool check_span(const OwnedModel& model, const Step& step, int number) {
  const int32_t* span = step.span + number * 5;
  const int32_t rows = span[0], position = span[1], wanted = span[2], table = span[3], blocks = span[4];
  if (rows < 1 || position < 0 || wanted < 0 || wanted > rows)
    return complain("span %d: %d rows from position %d, %d of them wanted", number, rows, position, wanted), false;
  if (table < 0 || blocks < 0 || table > step.table_length - blocks)
    return complain("span %d: %d blocks from %d of %d", number, blocks, table, step.table_length), false;
  if (int64_t(position) + rows > int64_t(blocks) * BLOCK)
    return complain("span %d: %d tokens from %d on do not fit into %d blocks", number, rows, position, blocks), false;
  for (int i = 0; i < blocks; i++)
    if (step.tables[table + i] < 0 || step.tables[table + i] >= model.shape.blocks)
      return complain("span %d: block %d of %d", number, step.tables[table + i], model.shape.blocks), false;
  if (step.adapters[number] && step.adapters[number]->model != &model)
    return complain("span %d: an adapter of another model", number), false;
  return true;
}

bool check(const OwnedModel& model, const Step& step) {
  if (step.spans < 1 || step.rows < 1 || step.rows > (1 << 20)) return complain("%d rows in %d spans", step.rows, step.spans), false;
  int64_t rows = 0, wanted = 0;
  for (int i = 0; i < step.spans; i++) {
    if (!check_span(model, step, i)) return false;
    rows += step.span[i * 5], wanted += step.span[i * 5 + 2];
  }
  if (rows != step.rows || wanted != step.wanted)
    return complain("spans hold %d rows and want %d, the step says %d and %d", int(rows), int(wanted), step.rows, step.wanted), false;
  for (int i = 0; i < step.rows; i++)
    if (step.tokens[i] < 0 || step.tokens[i] >= model.shape.vocabulary)
      return complain("token %d of %d", step.tokens[i], model.shape.vocabulary), false;
  return true;
}

// Spans, rows and looks of one step.
struct Plan {
  std::vector<Span> spans;
  std::vector<Look> looks;
  std::vector<int32_t> row_span, last;
  std::vector<const Adapter*> adapter, last_adapter;
  size_t parts = 0;  // numbers
  int rank = 0;

  Plan(const OwnedModel& model, const Step& step) {
    const int group = model.shape.heads / model.shape.kv_heads;
    int row = 0;
    for (int i = 0; i < step.spans; i++) {
      const int32_t* said = step.span + i * 5;
      const Adapter* own = step.adapters[i];
      spans.push_back({row, said[0], said[1], said[2], step.tables + said[3], own});
      if (own && own->rank > rank) rank = own->rank;
      row_span.insert(row_span.end(), said[0], i);
      adapter.insert(adapter.end(), said[0], own);
      for (int r = said[0] - said[2]; r < said[0]; r++) last.push_back(row + r), last_adapter.push_back(own);
      const int together = look_rows(group);
      for (int r = 0; r < said[0]; r += together)
        add_look(i, row + r, said[0] - r < together ? said[0] - r : together);
      row += said[0];
    }
    cut(model, group);
  }

  void add_look(int span, int row, int rows) {
    const int context = spans[span].position + row - spans[span].row + rows;
    looks.push_back({span, row, rows, (context + CHUNK - 1) / CHUNK, 1, 0});
  }

  static int look_rows(int group) { return group < LOOK_QUERIES ? LOOK_QUERIES / group : 1; }

 private:
  // Long contexts are cut where there are too few looks to keep all members busy.
  void cut(const OwnedModel& model, int group) {
    const int wanted = 3 * team_size(*model.team), items = int(looks.size()) * model.shape.kv_heads;
    if (items >= wanted) return;
    for (Look& look : looks) {
      const int few = (wanted + items - 1) / items;
      look.pieces = look.chunks < few ? look.chunks : few;
      if (look.pieces == 1) continue;
      look.part = parts;
      parts += size_t(model.shape.kv_heads) * look.chunks * look.rows * group * (model.shape.head_size + 2);
    }
  }
};

// Takes pieces of one block of memory, 64-byte aligned; run once without memory to learn the size.
struct Cutter {
  uint8_t* memory;
  size_t used = 0;

  template <class T>
  T* take(size_t count) {
    T* out = memory ? reinterpret_cast<T*>(memory + used) : nullptr;
    used += to_multiple(count * sizeof(T), 64);
    return out;
  }
};

size_t lay_out(Run& run, const OwnedModel& model, const Step& step, int rank, uint8_t* memory) {
  const Shape& s = model.shape;
  const size_t rows = step.rows, width = padded(s.width), mixed = padded(s.heads * s.head_size), ffn = padded(s.ffn_width);
  const int columns = int(width > mixed ? (width > ffn ? width : ffn) : (mixed > ffn ? mixed : ffn));
  bool norms_behind = false;
  for (const Layer& layer : model.owned_layers) norms_behind = norms_behind || layer.after_attention || layer.after_mlp;
  Cutter cut{memory};
  run.x = cut.take<float>(rows * width);
  run.qkv = cut.take<float>(rows * (s.heads + 2 * s.kv_heads) * s.head_size);
  run.mixed = cut.take<float>(rows * mixed);
  run.gated = cut.take<float>(rows * ffn);
  run.added = cut.take<float>(norms_behind ? rows * width : 0);
  run.turn = cut.take<float>(rows * s.ropes * s.head_size);
  run.chosen = cut.take<float>(size_t(step.wanted) * (width + mixed));
  run.panels = cut.take<uint8_t>(model.table->panel_bytes(step.rows, columns));
  run.low = cut.take<float>(rows * 3 * rank);
  run.look_rows = Plan::look_rows(s.heads / s.kv_heads) * (s.heads / s.kv_heads);
  run.own_bytes = to_multiple(model.table->own_bytes(columns, rank, run.look_rows, s.head_size), 64);
  run.own = cut.take<uint8_t>(run.own_bytes * team_size(*model.team));
  return cut.used;
}

struct Call {
  const Table* table;
  Run* run;
};

void run_share(void* argument, int member) {
  const Call& call = *static_cast<Call*>(argument);
  call.table->forward(*call.run, member);
}

}  // namespace
}  // namespace quietchoir

using namespace quietchoir;

// Runs one step. False after a complaint; then nothing was written, neither to the cache nor to the logits.
QC_EXPORT bool quietchoir_forward(OwnedModel* model, const Step* step) {
  try {
    std::lock_guard<std::mutex> lock(model->one_step);
    if (!check(*model, *step)) return false;
    const Plan plan(*model, *step);
    Run run{};
    run.model = model, run.team = model->team.get();
    run.rows = step->rows, run.wanted = step->wanted, run.spans = step->spans, run.looks = int(plan.looks.size());
    run.tokens = step->tokens, run.logits = step->logits;
    run.span = plan.spans.data(), run.look = plan.looks.data(), run.row_span = plan.row_span.data();
    run.last = plan.last.data(), run.adapter = plan.adapter.data(), run.last_adapter = plan.last_adapter.data();
    run.rank = plan.rank;
    const size_t bytes = lay_out(run, *model, *step, plan.rank, nullptr);
    lay_out(run, *model, *step, plan.rank, model->room.at_least(bytes));
    run.parts = reinterpret_cast<float*>(model->parts.at_least(plan.parts * sizeof(float)));
    Call call{model->table, &run};
    team_run(*model->team, run_share, &call);
    return true;
  } catch (const std::exception& error) {
    return complain("%s", error.what()), false;
  }
}
