// The only file that includes CLI11, which is slow to compile.
#include "tools/cli/arguments.h"

#include <algorithm>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <functional>

#include <CLI/CLI.hpp>

#include "tools/cli/commands.h"
#include "tools/cli/support.h"

namespace gantry::cli {
namespace {

constexpr char kExitCodesText[] =
    "Exit status: 0 done, 1 the answer is no, 64 wrong usage, 65 bad input, 66 input missing, 69 something is unavailable,\n"
    "70 a bug, 73 cannot create output, 74 input/output error, 75 stopped after a checkpoint (resume goes on).";

// Whole numbers that 63 bits hold: CLI11 alone wraps "-1" around, and cuts larger ones down.
CLI::Validator AtLeast(int64_t low) {
  const auto check = [low](const std::string& text) -> std::string {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && value >= low) return "";
    return Format("'%s' is no whole number from %" PRId64 " to %" PRId64, text.c_str(), low, INT64_MAX);
  };
  return CLI::Validator(check, low == 0 ? "NUMBER" : "POSITIVE");
}

// "$CHECKPOINT" of a script where it is not set, for example.
CLI::Validator NotEmpty() {
  return CLI::Validator([](const std::string& text) { return std::string(text.empty() ? "it is empty" : ""); }, "TEXT");
}

// "host+file": different ones of `words`; or "none".
CLI::Validator Joined(const std::vector<std::string>& words) {
  const auto check = [words](const std::string& text) {
    if (text == "none") return std::string();
    std::vector<std::string> left = words;
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find('+', begin), text.size());
      if (std::erase(left, text.substr(begin, end - begin)) == 0) return text + " is not none, or different ones of " + CLI::detail::join(words) + " joined with +";
      begin = end + 1;
    }
    return std::string();
  };
  return CLI::Validator(check, "PLACES");
}

void AddRanks(CLI::App* command, RankFlags& ranks, const char* what = "Start so many ranks on this machine") {
  command->add_option("--ranks", ranks.ranks, what)->check(CLI::Range(1, 16384));
  command->add_option("--parallel", ranks.parallel, "How ranks share out the step: batch, space, channel, shard, roles, pipeline, or several joined with +; auto: what is predicted to be fastest")->check(NotEmpty());
  command->add_option("--overlap", ranks.overlap, "Whether exchanges run beside compute: on, across (steps, too) or off; the same bits")
      ->check(CLI::IsMember({"on", "across", "off"}))
      ->take_last();
  command->add_option("--comm-link", ranks.link, "Hold exchanges to a link's speed: 1GB/s,50us")->type_name("SPEED")->take_last();
}

void AddMemory(CLI::App* command, MemoryFlags& memory) {
  command->add_option("--device-memory", memory.device,
                      "What a step may take of the device: 64MiB, or a share of what it takes otherwise: 1/4; of several ranks one each: 64MiB,128MiB,none")
      ->type_name("SIZE")
      ->take_last();
  command->add_option("--offload", memory.offload,
                      "Where values wait that do not fit: none, or several of peer (other ranks' devices), host, remote (hosts of other nodes) and "
                      "file, joined with +; default host")
      ->check(Joined({"peer", "host", "remote", "file"}))
      ->take_last();
  command->add_option("--host-memory", memory.host, "Most bytes that wait in a rank's host memory, those of other ranks included")->type_name("SIZE")
      ->take_last();
  command->add_option("--offload-directory", memory.directory, "Folder for the file that values wait in")->type_name("DIR")
      ->take_last();
  command->add_option("--link", memory.link, "Hold copies to a link's speed: out=2GB/s,in=2GB/s,latency=10us")->type_name("SPEED")
      ->take_last();
  command->add_option("--plan", memory.plan, "Carry out this plan file instead of planning, or those of all ranks in a folder")->type_name("FILE")
      ->take_last();
  command->add_option("--machine", memory.machine, "Plan for the machine of this file; default: GANTRY_MACHINE, else this machine's calibration")
      ->type_name("FILE")
      ->take_last();
  command->add_flag("--recompute,!--no-recompute", memory.recompute, "Run ops again to save memory (default), or none; the last one counts");
  command->add_option("--stash-dtype", memory.stash, "What activations are rounded to while they wait: f32 (default), or bf16, which changes results")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->take_last();
  command->add_flag("!--no-encode", memory.encode, "No sign bits in place of values, no copies without zeros");
  command->add_flag("--checksums", memory.checksums, "Compare what tiers give back with what they were given");
}

// Which subcommand was chosen: its callback stores what to run, so that failures are thrown outside of CLI11.
using Chosen = std::function<int()>;

void AddCheck(CLI::App& app, Chosen& chosen) {
  static CheckOptions options;
  CLI::App* command = app.add_subcommand("check", "Replay a reference case and compare every logged value and weight with it");
  command->add_option("case", options.folder, "Folder with case.json, generator.onnx, discriminator.onnx, real.npy, noise.npy, expected.npz")->required();
  command->add_option("--kernels", options.kernels, "reference (default): plain loops; fast: kernels for this processor")
      ->check(CLI::IsMember({"reference", "fast"}));
  command->add_option("--dtype", options.dtype, "f64 (default with reference kernels) or f32")->check(CLI::IsMember({"f64", "f32"}));
  command->add_option("--threads", options.threads, "Threads of a step; 0 (default): one a core")->check(CLI::Range(0, 4096));
  command->add_flag_callback("--no-winograd", [] { options.winograd = false; }, "No Winograd forms of convolutions");
  AddRanks(command, options.ranks);
  AddMemory(command, options.memory);
  command->add_flag("--json", options.json, "End stdout with one line of JSON: log, weights_sha256, largest errors");
  command->callback([&] { chosen = [] { return RunCheck(options); }; });
}

void AddLayout(CLI::App& app, Chosen& chosen) {
  static LayoutOptions options;
  CLI::App* layout = app.add_subcommand("layout", "Place buffers with known lifetimes in one arena");
  layout->require_subcommand(1);
  CLI::App* solve = layout->add_subcommand("solve", "Find a low placement; exit 1 where none fits the capacity");
  solve->add_option("problem", options.problem, "CSV file: id,lower,upper,size[,alignment][,group][,offset]")->required();
  solve->add_option("--capacity", options.capacity_bytes, "Bytes of the arena; default: as low as can be found")->check(AtLeast(1));
  solve->add_option("--out", options.placed, "CSV file to write: the problem with an offset column");
  solve->add_option("--work", options.work_limit, "How long to search, in units of about a nanosecond")->check(AtLeast(1));
  solve->add_option("--seed", options.seed, "Seed of the randomised part")->check(AtLeast(0));
  solve->callback([&] { chosen = [] { return RunLayoutSolve(options); }; });
  CLI::App* check = layout->add_subcommand("check", "Prove a placement right; exit 1 where it is wrong");
  check->add_option("problem", options.problem, "CSV file of the problem")->required();
  check->add_option("placed", options.placed, "CSV file with columns id and offset")->required();
  check->add_option("--capacity", options.capacity_bytes, "Bytes of the arena")->check(AtLeast(1));
  check->callback([&] { chosen = [] { return RunLayoutCheck(options); }; });
}

void AddInfo(CLI::App& app, Chosen& chosen) {
  app.add_subcommand("backends", "Say which backends this build has and what they found here")->callback([&] { chosen = RunBackends; });
  app.add_subcommand("ops", "List the operators that models can be made of")->callback([&] { chosen = RunOps; });
}

void AddModel(CLI::App& app, Chosen& chosen) {
  static ModelOptions options;
  const auto AddSource = [](CLI::App* command, ModelOptions& options) {
    CLI::Option* source = command->add_option("source", options.source, "A run file, or the folder of a reference case")->required();
    command->add_option("--set", options.settings, "Override a key of the run file: train.batch=32")->type_name("KEY=VALUE")->allow_extra_args(false);
    AddMemory(command, options.memory);
    command->add_option("--dtype", options.dtype, "Of a reference case: f32 (default) or f64")->check(CLI::IsMember({"f64", "f32"}));
    command->add_option("--kernels", options.kernels, "Of a reference case: fast (default) or reference")->check(CLI::IsMember({"reference", "fast"}));
    return source;
  };
  CLI::App* program = app.add_subcommand("program", "Look at step programs");
  program->require_subcommand(1);
  CLI::App* show = program->add_subcommand("show", "Print the step program as text");
  AddSource(show, options);
  show->add_flag("--executed", options.executed, "As it runs: simplified, fused, lowered to this processor");
  show->add_flag("--gradient-norms", options.gradient_norms, "Of a reference case: with the norm of every parameter's gradient");
  show->callback([&] { chosen = [] { return RunProgramShow(options); }; });
  static PlanOptions plans;
  CLI::App* plan = app.add_subcommand("plan", "Plan a step, and look at plans: gantry plan SOURCE --out FILE");
  plan->require_subcommand(0, 1);
  AddSource(plan, plans.model)->required(false);
  plan->add_option("--out", plans.out, "Plan file to write; of several ranks, the first one's, or a folder for all")->type_name("FILE");
  AddRanks(plan, plans.ranks, "Plan for so many ranks, and simulate a step of them");
  plan->add_option("--nodes", plans.nodes, "Plan for so many nodes of the machine file")->check(CLI::Range(1, 65536));
  plan->add_flag("--json", plans.json, "Of several ranks: one line of JSON");
  CLI::App* show_plan = plan->add_subcommand("show", "Print what a step will need: peak bytes and the largest buffers");
  AddSource(show_plan, options)->description("A run file, the folder of a reference case, or a plan file");
  show_plan->callback([&] { chosen = [] { return RunPlanShow(options); }; });
  static WhatIfOptions what_if;
  CLI::App* ask = plan->add_subcommand("what-if", "Say what a run's step would need and take if it were run otherwise");
  AddSource(ask, what_if.model)->description("A run file");
  ask->add_flag("--json", what_if.json, "One line of JSON instead of a table");
  ask->callback([&] { chosen = [] { return RunPlanWhatIf(what_if); }; });
  CLI::App* diff = plan->add_subcommand("diff", "Print what changes from one plan file to another");
  diff->add_option("from", plans.first, "Plan file")->required();
  diff->add_option("to", plans.second, "Plan file")->required();
  diff->callback([&] { chosen = [] { return RunPlanDiff(plans); }; });
  CLI::App* verify = plan->add_subcommand("verify", "Prove a plan file right; exit 1 where it is wrong");
  verify->add_option("plan", plans.first, "Plan file")->required();
  verify->add_option("source", plans.model.source, "The run file or case that it is for: then every op's reads and writes are proven too");
  verify->add_option("--set", plans.model.settings, "As when it was made")->type_name("KEY=VALUE");
  AddMemory(verify, plans.model.memory);
  verify->callback([&] { chosen = [] { return RunPlanVerify(plans); }; });
  plan->callback([&, plan] {
    if (!plan->get_subcommands().empty()) return;
    chosen = [] { return RunPlanMake(plans); };
  });
}

void AddCalibrate(CLI::App& app, Chosen& chosen) {
  static CalibrateOptions options;
  CLI::App* command = app.add_subcommand("calibrate", "Measure what ops and copies take on this machine, for all later plans");
  command->add_option("run", options.run, "A run file whose step is measured as well, so that its predictions are the best");
  command->add_option("--set", options.settings, "Override a key of the run file")->type_name("KEY=VALUE")->allow_extra_args(false);
  command->add_option("--out", options.out, "Machine file to write; default: where later plans look")->type_name("FILE");
  command->add_option("--offload-directory", options.directory, "Measure copies to a file in this folder too")->type_name("DIR");
  command->add_option("--threads", options.threads, "Threads of a step; 0 (default): one a core")->check(CLI::Range(0, 4096));
  command->add_option("--steps", options.steps, "Steps that each workload is measured for; default 3")->check(CLI::Range(1, 1000));
  AddRanks(command, options.ranks, "Measure the run's step on so many ranks of this machine, all at work");
  command->callback([&] { chosen = [] { return RunCalibrate(options); }; });
}

void AddTrain(CLI::App& app, Chosen& chosen) {
  static TrainOptions train;
  CLI::App* command = app.add_subcommand("train", "Train what a run file describes");
  command->add_option("run", train.run_file, "Run file (TOML)")->required();
  command->add_option("--set", train.settings, "Override a key: train.batch=32; may be repeated")->type_name("KEY=VALUE")->allow_extra_args(false);
  AddRanks(command, train.ranks);
  command->add_option("--restarts", train.ranks.restarts, "Start the ranks again from the last checkpoint, so often at most, when one is lost")
      ->check(CLI::Range(0, 1000000));
  command->add_flag("--checkpoint-memory{1}", train.checkpoint_memory,
                    "With --restarts: keep the states in memory, too, after every step, or every so many: --checkpoint-memory=5")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  AddMemory(command, train.memory);
  command->add_option("--resume", train.resume, "Go on from a checkpoint: latest, or a file")->check(NotEmpty());
  command->add_option("--steps", train.steps, "Stop after so many steps of this call, with a checkpoint")->check(AtLeast(1));
  command->callback([&] { chosen = [] { return RunTrain(train); }; });

  static SampleOptions sample;
  CLI::App* draw = app.add_subcommand("sample", "Draw samples from a checkpoint");
  draw->add_option("source", sample.source, "A checkpoint, a run's folder (its newest checkpoint), or a run file")->required();
  draw->add_option("--out", sample.out, "File to write: .png (a grid of images) or .npy")->required();
  draw->add_option("--count", sample.count, "Samples; default 64")->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  draw->add_option("--columns", sample.columns, "Images a row; default: about square")->check(AtLeast(0));
  draw->add_option("--seed", sample.seed, "Seed of the noise; default 0")->check(AtLeast(0));
  draw->add_flag_callback("--no-average", [] { sample.average = false; }, "Use the weights, not their running average");
  draw->callback([&] { chosen = [] { return RunSample(sample); }; });
}

// `after_dashes`: what stood behind "--", which CLI11 would take apart.
void AddLaunch(CLI::App& app, Chosen& chosen, const std::vector<std::string>& after_dashes) {
  static LaunchCommand options;
  CLI::App* command = app.add_subcommand("run", "Start the ranks of a job on this machine: gantry run -n 4 -- PROGRAM ARGUMENTS...");
  command->prefix_command();  // what follows the options is the program's
  command->add_option("-n,--ranks", options.ranks, "How many ranks; default 1")->check(CLI::Range(1, 512));
  command->add_option("--nodes", options.nodes, "Let the ranks take themselves to be on so many machines: they share no memory then, and talk over loopback")
      ->check(CLI::Range(1, 512));
  command->add_flag("!--no-bind", options.bind, "Let every rank use every core");
  command->add_flag("!--no-prefix", options.prefix, "Relay lines without \"[RANK] \" before them");
  command->add_option("--grace", options.grace_seconds, "Seconds that the others may go on after a rank failed; default 5")->check(CLI::Range(0.0, 1e6));
  command->add_option("--timeout", options.timeout_seconds, "Seconds after which the job is ended; default none")->check(CLI::Range(0.0, 1e9));
  command->add_option("--hang", options.hang_seconds, "Say who is waited for when an operation takes so many seconds; default 60, 0 for never")
      ->check(CLI::Range(0.0, 1e6));
  command->add_option("--restarts", options.restarts, "Start the job again when a rank is lost, so often at most; default 0")->check(CLI::Range(0, 1000000));
  command->add_option("--recorder", options.recorder_file, "File for the flight recorders of a job that failed")->type_name("FILE");
  command->callback([&, command] {
    options.program = command->remaining();
    if (!options.program.empty() && !after_dashes.empty()) options.program.push_back("--");  // the program's own
    options.program.insert(options.program.end(), after_dashes.begin(), after_dashes.end());
    if (options.program.empty()) throw CLI::RequiredError("PROGRAM");
    chosen = [] { return RunLaunch(options); };
  });
  static RecorderCommand recorder;
  CLI::App* read = app.add_subcommand("recorder", "Say what each rank of a job did last, and who is waited for");
  read->add_option("source", recorder.source, "The number of a process (a rank, or the `gantry run` that started it), or a file of run --recorder")->required();
  read->add_flag("--json", recorder.json, "As one JSON object");
  read->callback([&] { chosen = [] { return RunRecorder(recorder); }; });
  static TopologyCommand topology;
  CLI::App* topo = app.add_subcommand("topo", "Print what this machine is made of, as a tree");
  CLI::Option* machine = topo->add_option("--machine", topology.machine, "A described machine in place of this one: a file, or a name such as dgx-h100");
  topo->add_option("--nodes", topology.nodes, "That many of them, as a job")->needs(machine)->check(CLI::Range(1, 1024));
  topo->add_flag("--json", topology.json, "As one JSON object");
  topo->callback([&] { chosen = [] { return RunTopology(topology); }; });
}

// The innermost subcommand on the command line.
const CLI::App& Innermost(const CLI::App& app) {
  const std::vector<CLI::App*> used = const_cast<CLI::App&>(app).get_subcommands();
  return used.empty() ? app : Innermost(*used.back());
}

// "gantry layout solve", as far as the command line names it.
std::string CommandPath(const CLI::App& app) {
  const std::vector<CLI::App*> used = const_cast<CLI::App&>(app).get_subcommands();
  return used.empty() ? app.get_name() : app.get_name() + " " + CommandPath(*used.back());
}

// "; did you mean '--kernels' instead of '--kernel'?" for the first argument that nobody takes.
std::string Suggestion(const CLI::App& app, int argc, char** argv) {
  const CLI::App& command = Innermost(app);
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_fnames()) names.push_back("--" + name);
  }
  for (const CLI::App* subcommand : const_cast<CLI::App&>(command).get_subcommands([](CLI::App*) { return true; })) {
    names.push_back(subcommand->get_name());
  }
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    if (argument.starts_with("--")) argument = argument.substr(0, argument.find('='));
    if (std::find(names.begin(), names.end(), argument) != names.end()) continue;
    const std::string nearest = Nearest(argument, names);
    if (!nearest.empty() && nearest.starts_with("--") == argument.starts_with("--")) {
      return "; did you mean '" + nearest + "' instead of '" + argument + "'?";
    }
  }
  return "";
}

}  // namespace

int ParseAndRun(int argc, char** argv) {
  CLI::App app("Trains generative adversarial networks. `gantry COMMAND --help` describes a command.", "gantry");
  app.footer(kExitCodesText);
  app.set_version_flag("--version", std::string("gantry ") + gantry_version());
  app.require_subcommand(1);
  Chosen chosen;
  AddTrain(app, chosen);
  AddCheck(app, chosen);
  AddModel(app, chosen);
  AddCalibrate(app, chosen);
  AddLayout(app, chosen);
  std::vector<std::string> after_dashes;
  if (argc > 1 && std::string_view(argv[1]) == "run") {
    char** dashes = std::find_if(argv, argv + argc, [](const char* argument) { return std::string_view(argument) == "--"; });
    if (dashes != argv + argc) after_dashes.assign(dashes + 1, argv + argc);
    argc = static_cast<int>(dashes - argv);
  }
  AddLaunch(app, chosen, after_dashes);
  AddInfo(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success, std::cout, std::cerr);  // --help, --version
  } catch (const CLI::ParseError& error) {
    throw Failure(kExitUsage, error.what() + Suggestion(app, argc, argv) + "\ntry: " + CommandPath(app) + " --help");
  }
  return chosen();
}

}  // namespace gantry::cli
