"""The command line: habits of llama-server's users, the environment, and one line per mistake."""

import pytest

from libloader import core, options
from libloader.errors import UsageError


def parse(*arguments, **environment):
    return options.parse(arguments, environment)


def test_dash_h_is_the_host_and_dash_p_the_port():
    flags = parse("m.gguf", "-h", "0.0.0.0", "-p", "9000")
    assert (flags.host, flags.port, flags.model) == (["0.0.0.0"], 9000, "m.gguf")


def test_the_model_is_positional_or_dash_m():
    assert parse("a.gguf").model == parse("-m", "a.gguf").model == "a.gguf"


def test_llama_server_habits_are_understood():
    flags = parse(
        "m", "-c", "4096", "-b", "512", "-ub", "256", "-np", "2", "-t", "4", "-tb", "3",
        "-ngl", "-1",
        "-fa", "-ctk", "q8_0", "-ctv", "q8_0", "--mlock", "--no-mmap", "-a", "x",
    )  # fmt: skip
    settings = options.engine_settings(flags)
    assert settings == core.EngineSettings(
        model="m", alias="x", n_gpu_layers=-1, n_ctx=4096, n_batch=512, n_ubatch=256, n_parallel=2,
        n_threads=4, n_threads_batch=3, flash_attn="on", cache_type_k="q8_0", cache_type_v="q8_0",
        use_mmap=False, use_mlock=True, n_queue=32,
    )  # fmt: skip


def test_the_name_in_answers_is_the_file_s_unless_given():
    assert options.engine_settings(parse("/models/qwen.gguf")).alias == "qwen"


def test_the_command_line_wins_over_the_environment_and_that_over_defaults():
    assert parse("m", "-p", "1", IGLLAMA_PORT="2").port == 1
    assert parse("m", IGLLAMA_PORT="2").port == 2
    assert parse("m").port == 8080


@pytest.mark.parametrize("row", options.ALL_OPTIONS, ids=lambda row: row.dest)
def test_every_option_is_also_an_environment_variable(row):
    text = "1" if row.convert is None else sample(row)
    value = getattr(parse("m", **{row.variable: text}), row.dest)
    assert value != row.default or str(row.default) == text or row.dest == "model"


def sample(row):
    """A value that the row takes and that is not its default."""
    for text in ("7", "0.5", "off", "q8_0", "cls", "none", "debug", "file:0.5"):
        try:
            if row.convert(text) != row.default:
                return text
        except ValueError:
            continue
    raise AssertionError(f"no sample fits {row.flags}")


def test_lists_come_comma_separated_from_the_environment():
    assert parse("m", IGLLAMA_API_KEY="a,b").api_key == ["a", "b"]
    assert parse("m", "--api-key", "a", "--api-key", "b").api_key == ["a", "b"]


def test_adapters_are_numbered_those_without_a_scale_first():
    given = parse("m", "--lora-scaled", "C:\\b.gguf:0.5", "--lora", "a.gguf")
    settings = options.engine_settings(given)
    assert settings.lora == (("a.gguf", 1.0), ("C:\\b.gguf", 0.5))
    assert not settings.lora_init_without_apply


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bogus"], "--bogus"),
        (["--lora-scaled", "a.gguf"], "a file, a colon and a scale"),
        (["--lora-scaled", "a.gguf:inf"], "a file, a colon and a scale"),
        (["--por", "1"], "--por"),
        (["-p", "x"], "'x' is not an integer from 0 to 65535"),
        (["-p", "70000"], "'70000' is not an integer"),
        (["-np", "0"], "an integer from 1"),
        (["-ctk", "f64"], "one of f32, f16"),
        (["--timeout", "-1"], "a number of seconds"),
        (["-c"], "expected one argument"),
    ],
)
def test_a_wrong_flag_or_value_is_named_with_what_is_right(arguments, words):
    with pytest.raises(UsageError) as caught:
        parse("m", *arguments)
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_a_wrong_environment_value_is_named():
    with pytest.raises(UsageError, match="IGLLAMA_PORT: 'x' is not an integer"):
        parse("m", IGLLAMA_PORT="x")


def test_help_shows_every_option_in_its_group():
    text = options.help_text("title")
    for group, rows in options.OPTIONS.items():
        assert f"\n{group}:\n" in text
        assert all(row.flags.split()[0] in text for row in rows)


def test_sampling_flags_are_told_by_the_names_of_request_fields():
    flags = parse("m.gguf", "--temp", "0", "--top-k", "7", IGLLAMA_MIN_P="0.1")
    assert options.sampling(flags) == {"temperature": 0.0, "top_k": 7, "min_p": 0.1}
    assert options.sampling(parse("m.gguf")) == {}
    with pytest.raises(UsageError, match="a number from 0 to 1"):
        parse("m.gguf", "--top-p", "2")


def test_a_draft_model_has_its_own_layers_and_lengths():
    flags = parse("a.gguf", "-md", "b.gguf", "-ngld", "7", "--draft-max", "8", "--draft-min", "2")
    settings = options.engine_settings(flags)
    assert (settings.model_draft, settings.n_gpu_layers_draft) == ("b.gguf", 7)
    assert (settings.draft_max, settings.draft_min) == (8, 2)
