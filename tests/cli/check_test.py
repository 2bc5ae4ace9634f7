"""gantry check: agreement with PyTorch's runs, and what happens to cases that are wrong."""
import json
import os
import shutil
import unittest
import unittest.mock

from gantry_test_case import REFERENCE, GantryTestCase

CASES = sorted(name for name in os.listdir(REFERENCE) if os.path.isfile(os.path.join(REFERENCE, name, "case.json")))


class Agreement(GantryTestCase):
    def test_all_cases_are_here(self):
        self.assertGreaterEqual(len(CASES), 7)

    def test_reference_kernels_in_f64(self):
        for case in CASES:
            with self.subTest(case):
                self.run_gantry("check", os.path.join(REFERENCE, case), "--kernels", "reference", "--dtype", "f64")

    def test_fast_kernels_in_f32(self):
        for case in CASES:
            for extra in ([], ["--no-winograd"], ["--threads", "1"]):
                with self.subTest(case, extra=extra):
                    self.run_gantry("check", os.path.join(REFERENCE, case), "--kernels", "fast", "--dtype", "f32", *extra)

    def test_narrower_instructions(self):
        for isa in ("portable", "avx2"):
            with unittest.mock.patch.dict(os.environ, {"GANTRY_ISA": isa}):
                for case in CASES:
                    with self.subTest(case, isa=isa):
                        self.run_gantry("check", os.path.join(REFERENCE, case), "--kernels", "fast", "--dtype", "f32")

    def test_gradient_norms_are_judged_by_the_stated_bound(self):
        case = self.copy_case("ring-mlp")
        path = os.path.join(case, "case.json")
        with open(path) as file:
            settings = json.load(file)
        settings["float32_vs_float64"]["max_abs_log"] = [1.0] * settings["steps"]  # a drift that excuses no gradient norm
        norms = settings["gradient_norm_step1"]
        tensor = max((name for name in norms if name.startswith("generator.")), key=norms.get)
        norms[tensor] *= 1 + 2e-4
        with open(path, "w") as file:
            json.dump(settings, file)
        done = self.run_gantry("check", case, "--kernels", "fast", "--dtype", "f32", expect=1)
        self.assertIn(f"gradient norm of {tensor}", done.stdout)

    def test_json_is_the_last_line(self):
        done = self.run_gantry("check", os.path.join(REFERENCE, "ring-mlp"), "--json")
        result = json.loads(done.stdout.splitlines()[-1])
        with open(os.path.join(REFERENCE, "ring-mlp", "case.json")) as file:
            case = json.load(file)
        self.assertEqual(result["columns"], case["columns"])
        self.assertEqual(len(result["log"]), case["steps"])
        for got, expected in zip(result["log"], case["log_float64"]):
            for a, b in zip(got, expected):
                self.assertAlmostEqual(a, b, delta=1e-9)
        self.assertRegex(result["weights_sha256"], "^[0-9a-f]{64}$")
        self.assertLess(result["max_log_error"], 1e-9)
        self.assertLess(result["max_weight_error"], 1e-7)
        again = self.run_gantry("check", os.path.join(REFERENCE, "ring-mlp"), "--json", "--threads", "1")
        self.assertEqual(json.loads(again.stdout.splitlines()[-1])["weights_sha256"], result["weights_sha256"])


class Disagreement(GantryTestCase):
    def test_another_log_is_outside(self):
        case = self.copy_case("ring-mlp")
        path = os.path.join(case, "case.json")
        with open(path) as file:
            settings = json.load(file)
        settings["log_float64"][5][4] += 2e-9
        with open(path, "w") as file:
            json.dump(settings, file)
        done = self.run_gantry("check", case, expect=1)
        self.assertIn("OUTSIDE", done.stdout)
        self.assertIn("generator_loss", done.stdout)
        self.run_gantry("check", case, "--kernels", "fast")  # far inside of what f32 may be off

    def test_other_settings_are_outside(self):
        for field, value in (("loss", "hinge"), ("ema", 0.8), ("r1", 1.0),
                             ("optimizer", {"name": "sgd", "lr": 0.01}), ("optimizer", {"name": "adam", "lr": 1e-3})):
            with self.subTest(field):
                case = self.copy_case("ring-mlp", **{field: value})
                self.run_gantry("check", case, expect=1)
                shutil.rmtree(case)

    def test_a_tensor_that_we_lack(self):
        case = self.copy_case("ring-mlp", ema=None)
        self.assertIn("MISSING", self.run_gantry("check", case, expect=1).stdout)


class BadCases(GantryTestCase):
    def test_missing(self):
        self.run_gantry("check", self.path("nowhere"), expect=66, words=["nowhere"])
        self.run_gantry("check", self.write("file", ""), expect=65, words=["folder"])
        for name in ("case.json", "generator.onnx", "discriminator.onnx", "real.npy", "noise.npy", "expected.npz"):
            with self.subTest(name):
                case = self.copy_case("ring-mlp")
                os.remove(os.path.join(case, name))
                self.run_gantry("check", case, expect=65, words=[name])
                shutil.rmtree(case)

    def test_cut_short(self):
        for name in ("case.json", "generator.onnx", "discriminator.onnx", "real.npy", "noise.npy", "expected.npz"):
            size = os.path.getsize(os.path.join(REFERENCE, "ring-mlp", name))
            for keep in (0, 1, size // 3, size - 1):
                with self.subTest(name, keep=keep):
                    case = self.copy_case("ring-mlp")
                    path = os.path.join(case, name)
                    os.chmod(path, 0o644)
                    os.truncate(path, min(keep, os.path.getsize(path) - 1))
                    self.run_gantry("check", case, expect=65, words=[name])
                    shutil.rmtree(case)

    def test_fields(self):
        wrong = {"steps": [0, -1, 1.5, "12", 13, 10**30, ...], "batch": [0, 63, "x", ...], "loss": ["hing", 3, ...],
                 "r1": [-1, "1", [1]], "r1_every": [0, 2.5], "n_critic": [0, 2, 10**12], "ema": [1, -0.1, 2],
                 "columns": [["what"], [1], "discriminator_loss", ...], "log_float64": [[], [[1]], ...],
                 "optimizer": [{}, {"name": "adam"}, {"name": "lion", "lr": 1}, {"name": "adam", "lr": 1, "amsgrad": True},
                               {"name": "sgd", "lr": 1, "dampening": 0.5}, {"name": "adam", "lr": 1, "betta": 0.5}, [1]],
                 "gradient_norm_step1": [[1], {"x": "y"}], "float32_vs_float64": [{"max_abs_log": [1]}, 3],
                 "spectral_norm": [True, {"a": 1}]}
        for field, values in wrong.items():
            for value in values:
                with self.subTest(field, value=value):
                    case = self.copy_case("ring-mlp", **{field: value})
                    self.run_gantry("check", case, expect=65)
                    shutil.rmtree(case)

    def test_unknown_fields_are_named(self):
        self.run_gantry("check", self.copy_case("ring-mlp", clip_weights=0.01), expect=65, words=["clip_weights"])

    def test_null_fields_do_not_matter(self):
        self.run_gantry("check", self.copy_case("ring-mlp", clip_weights=None, description="for the reader"))

    def test_hostile_json(self):
        for text in ("[" * 200000, '{"steps": 1e999}', "null", "[]", '{"a": "\\ud800"}', "\xff\xfe"):
            case = self.copy_case("ring-mlp")
            self.write("ring-mlp/case.json", text.encode("latin1"))
            self.run_gantry("check", case, expect=65, words=["case.json"])
            shutil.rmtree(case)


if __name__ == "__main__":
    unittest.main()
