// One step: everything that a caller names is checked, memory is laid out, and the team runs it.
#include <exception>

#include "model.h"

namespace quietchoir {
namespace {

// Queries of one task: so many that a block's keys and values, which lie beyond the second cache,
// are read once for long enough work; what a task holds itself stays within that cache.
constexpr int TASK_QUERIES = 96;

bool check_span(const OwnedModel& model, const Step& step, int number) {
  const int32_t* span = step.span + number * 5;
  const int32_t rows = span[0], position = span[1], wanted = span[2], table = span[3],
                blocks = span[4];
  if (rows < 1 || position < 0 || wanted < 0 || wanted > rows)
    return complain("span %d: %d rows from position %d, %d of them wanted", number, rows, position,
                    wanted),
           false;
  if (table < 0 || blocks < 0 || table > step.table_length - blocks)
    return complain("span %d: %d blocks from %d of %d", number, blocks, table, step.table_length),
           false;
  if (int64_t(position) + rows > int64_t(blocks) * BLOCK)
    return complain("span %d: %d tokens from %d on do not fit into %d blocks", number, rows,
                    position, blocks),
           false;
  if (model.shape.positions && position + rows > model.shape.positions)
    return complain("span %d: %d tokens from %d on, the table has %d positions", number, rows,
                    position, model.shape.positions),
           false;
  for (int i = 0; i < blocks; i++)
    if (step.tables[table + i] < 0 || step.tables[table + i] >= model.shape.blocks)
      return complain("span %d: block %d of %d", number, step.tables[table + i],
                      model.shape.blocks),
             false;
  if (model.shape.delta_value_heads && (!step.states || !step.states[number]))
    return complain("span %d: nothing that its layers remember", number), false;
  if (step.adapters[number] && step.adapters[number]->model != &model)
    return complain("span %d: an adapter of another model", number), false;
  return true;
}

bool check(const OwnedModel& model, const Step& step) {
  if (step.spans < 1 || step.rows < 1 || step.rows > (1 << 20))
    return complain("%d rows in %d spans", step.rows, step.spans), false;
  int64_t rows = 0, wanted = 0;
  for (int i = 0; i < step.spans; i++) {
    if (!check_span(model, step, i)) return false;
    rows += step.span[i * 5], wanted += step.span[i * 5 + 2];
  }
  if (rows != step.rows || wanted != step.wanted)
    return complain("spans hold %d rows and want %d, the step says %d and %d", int(rows),
                    int(wanted), step.rows, step.wanted),
           false;
  for (int i = 0; i < step.rows; i++)
    if (step.tokens[i] < 0 || step.tokens[i] >= model.shape.vocab_size)
      return complain("token %d of %d", step.tokens[i], model.shape.vocab_size), false;
  return true;
}

// Spans, rows and tasks of one step.
struct Plan {
  std::vector<Span> spans;
  std::vector<AttentionTask> tasks;
  std::vector<int32_t> row_span, output_rows;
  std::vector<const Adapter*> adapter, output_adapter;
  size_t partials = 0;  // numbers
  int rank = 0;

  Plan(const OwnedModel& model, const Step& step) {
    const int group = most_group(model);
    int row = 0;
    for (int i = 0; i < step.spans; i++) {
      const int32_t* said = step.span + i * 5;
      const Adapter* own = step.adapters[i];
      spans.push_back({step.states ? step.states[i] : nullptr, row, said[0], said[1], said[2],
                       step.tables + said[3], own});
      if (own && own->rank > rank) rank = own->rank;
      row_span.insert(row_span.end(), said[0], i);
      adapter.insert(adapter.end(), said[0], own);
      for (int r = said[0] - said[2]; r < said[0]; r++)
        output_rows.push_back(row + r), output_adapter.push_back(own);
      const int together = task_rows(group);
      for (int r = 0; r < said[0]; r += together)
        add_task(i, row + r, said[0] - r < together ? said[0] - r : together);
      row += said[0];
    }
    cut(model);
  }

  void add_task(int span, int row, int rows) {
    const int context = spans[span].position + row - spans[span].row + rows;
    tasks.push_back({span, row, rows, (context + CHUNK - 1) / CHUNK, 1, 0});
  }

  // The most queries of any layer that share a head of keys.
  static int most_group(const OwnedModel& model) {
    int most = 1;
    for (const Layer& layer : model.owned_layers)
      if (layer.mixer == ATTENDS && group_of(model.shape, layer) > most)
        most = group_of(model.shape, layer);
    return most;
  }

  static int task_rows(int group) { return group < TASK_QUERIES ? TASK_QUERIES / group : 1; }

 private:
  // Long contexts are cut where there are too few tasks to keep all members busy.
  void cut(const OwnedModel& model) {
    const int wanted = 3 * team_size(*model.team),
              items = int(tasks.size()) * model.shape.num_kv_heads;
    if (items >= wanted) return;
    for (AttentionTask& task : tasks) {
      const int few = (wanted + items - 1) / items;
      task.splits = task.chunks < few ? task.chunks : few;
      if (task.splits == 1) continue;
      task.partial = partials;
      partials +=
          size_t(model.shape.num_heads) * task.chunks * task.rows * (model.shape.head_dim + 2);
    }
  }
};

void lay_out_mixture(Mixture& m, const OwnedModel& model, int rows, int columns, Cutter& cut) {
  const Shape& s = model.shape;
  if (!s.num_experts) return;
  const int pairs = rows * s.experts_per_token,
            active = pairs < s.num_experts ? pairs : s.num_experts;
  m.scores = cut.take<float>(size_t(rows) * padded(s.num_experts));
  bool apart = s.expert_groups > 1;  // experts are chosen by other numbers than their scores
  for (const Layer& layer : model.owned_layers) apart = apart || layer.routing_bias;
  m.choice = apart ? cut.take<float>(size_t(rows) * padded(s.num_experts)) : nullptr;
  m.chosen = cut.take<int32_t>(pairs), m.place = cut.take<int32_t>(pairs);
  m.row = cut.take<int32_t>(pairs), m.owner = cut.take<int32_t>(pairs);
  m.shares = cut.take<float>(pairs);
  m.active = cut.take<ExpertRows>(active), m.actives = cut.take<int32_t>(1);
  m.gated = cut.take<float>(size_t(pairs) * padded(s.intermediate_size));
  m.out = cut.take<float>(size_t(pairs) * padded(s.hidden_size));
  // each expert's rows begin a panel, so at most mr - 1 rows more for each
  const int panel_rows = pairs + active * (model.table->mr - 1);
  m.panels = cut.take<uint8_t>(model.table->panel_bytes(panel_rows, columns, model.terms));
}

size_t lay_out(Run& run, const OwnedModel& model, const Step& step, int rank, uint8_t* memory) {
  const Shape& s = model.shape;
  const size_t rows = step.rows, width = padded(s.hidden_size), mixed = mixed_width(s),
               inner = padded(widest_inner(s)), own = padded(s.intermediate_size),
               given = padded(given_width(s)), wide = own > inner ? own : inner,
               ffn = given > wide ? given : wide;
  const int columns =
      int(width > mixed ? (width > ffn ? width : ffn) : (mixed > ffn ? mixed : ffn));
  bool post_norms = false;
  for (const Layer& layer : model.owned_layers)
    post_norms = post_norms || layer.post_attention_norm || layer.post_mlp_norm || layer.given_norm;
  Cutter cut{memory};
  run.x = cut.take<float>(rows * width);
  run.qkv = cut.take<float>(rows * qkv_width(s));
  run.mixed = cut.take<float>(rows * mixed);
  run.gated = cut.take<float>(rows * inner);
  run.added = cut.take<float>(post_norms ? rows * width : 0);
  lay_out_mixture(run.mixture, model, step.rows, columns, cut);
  run.low = cut.take<float>(s.latent_size ? rows * low_width(s) : 0);
  run.heads = cut.take<float>(s.latent_size ? rows * heads_width(s) : 0);
  run.conv =
      cut.take<float>(s.conv_kernel && !s.delta_value_heads ? rows * padded(3 * s.hidden_size) : 0);
  const bool deltas = s.delta_value_heads > 0;
  run.delta = cut.take<float>(deltas ? rows * delta_inputs_width(s) : 0);
  run.seen = cut.take<float>(deltas ? rows * padded(delta_width(s)) : 0);
  run.gates = cut.take<float>(s.attention_gate ? rows * padded(s.num_heads * s.head_dim) : 0);
  run.streams = cut.take<float>(rows * s.streams * s.hidden_size);
  run.apart = cut.take<float>(s.streams ? 2 * rows * s.intermediate_size : 0);
  run.given = cut.take<float>(rows * strips_of(given_width(s)));
  run.cos_sin = cut.take<float>(rows * s.ropes * s.head_dim);
  run.output = cut.take<float>(size_t(step.wanted) * (width + mixed));
  run.panels = cut.take<uint8_t>(model.table->panel_bytes(step.rows, columns, model.terms));
  run.lora = cut.take<float>(rows * 3 * rank);
  const int group = Plan::most_group(model);
  run.task_queries = Plan::task_rows(group) * group;
  run.thread_scratch_bytes = to_multiple(
      model.table->thread_scratch_bytes(columns, rank, model.terms, run.task_queries, s.head_dim),
      64);
  run.thread_scratch = cut.take<uint8_t>(run.thread_scratch_bytes * team_size(*model.team));
  return cut.used;
}

}  // namespace
}  // namespace quietchoir

using namespace quietchoir;

// Runs one step. False after a complaint; then nothing was written, neither to the cache nor to the
// logits.
QC_EXPORT bool quietchoir_forward(OwnedModel* model, const Step* step) {
  try {
    std::lock_guard<std::mutex> lock(model->one_step);
    if (!check(*model, *step)) return false;
    const Plan plan(*model, *step);
    Run run{};
    run.model = model, run.team = model->team.get();
    run.rows = step->rows, run.wanted = step->wanted, run.spans = step->spans,
    run.tasks = int(plan.tasks.size());
    run.tokens = step->tokens, run.logits = step->logits;
    run.span = plan.spans.data(), run.task = plan.tasks.data(), run.row_span = plan.row_span.data();
    run.output_rows = plan.output_rows.data(), run.adapter = plan.adapter.data(),
    run.output_adapter = plan.output_adapter.data();
    run.rank = plan.rank;
    const size_t bytes = lay_out(run, *model, *step, plan.rank, nullptr);
    lay_out(run, *model, *step, plan.rank, model->scratch.at_least(bytes));
    run.partials =
        reinterpret_cast<float*>(model->partials.at_least(plan.partials * sizeof(float)));
    run_all(*model->team, model->table->forward, run);
    return true;
  } catch (const std::exception& error) { return complain("%s", error.what()), false; }
}
