"""Every case of the reliability catalogue, and the test that holds it: 122 cases in eight groups.

    A  HTTP framing and parsing     E  grammar, schema, template
    B  connections and time         F  native faults and containment
    C  JSON bodies                  G  security
    D  parameters and limits        H  process, signals, platform

A case may have more tests than are named here; `PARTLY` says what its tests leave out, and why.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SIZES = {"A": 20, "B": 17, "C": 12, "D": 19, "E": 14, "F": 17, "G": 12, "H": 11}
# case: "module test", ...; modules without their test_ and .py, tests without their test_
HELD_BY = {
    "A01": (
        "web_framing a_doubtful_request_is_refused_once_and_what_follows_is_never_read",
        "web_request a_body_has_one_unmistakable_framing_or_the_request_is_refused",
    ),
    "A02": (
        "web_framing a_doubtful_request_is_refused_once_and_what_follows_is_never_read",
        "web_request a_body_has_one_unmistakable_framing_or_the_request_is_refused",
    ),
    "A03": (
        "web_framing a_doubtful_request_is_refused_once_and_what_follows_is_never_read",
        "web_request content_length_is_ascii_digits_or_refused",
    ),
    "A04": (
        "web_framing a_doubtful_request_is_refused_once_and_what_follows_is_never_read",
        "web_request a_body_has_one_unmistakable_framing_or_the_request_is_refused",
    ),
    "A05": (
        "web_body chunks_are_joined_whatever_pieces_they_arrive_in",
        "web_body chunks_of_one_byte_are_fine",
    ),
    "A06": (
        "web_body a_malformed_chunk_is_refused",
        "web_body what_is_refused_is_not_collected_first",
    ),
    "A07": (
        "web_framing a_body_that_nobody_reads_is_never_taken_for_a_request",
        "web_framing a_get_may_have_a_body_which_is_read_as_such",
    ),
    "A08": (
        "web_framing a_doubtful_request_is_refused_once_and_what_follows_is_never_read",
        "web_request a_malformed_header_line_is_refused",
    ),
    "A09": (
        "web_framing a_doubtful_request_is_refused_once_and_what_follows_is_never_read",
        "web_request a_head_is_bounded_also_before_it_is_complete",
    ),
    "A10": (
        "web_framing a_doubtful_request_is_refused_once_and_what_follows_is_never_read",
        "web_request a_head_is_bounded_also_before_it_is_complete",
    ),
    "A11": (
        "web_framing a_doubtful_request_is_refused_once_and_what_follows_is_never_read",
        "web_request exactly_one_well_formed_host_is_needed",
    ),
    "A12": (
        "web_framing a_doubtful_request_is_refused_once_and_what_follows_is_never_read",
        "web_request only_http_1_1_and_1_0_are_spoken",
    ),
    "A13": (
        "web_framing continue_is_sent_when_the_body_will_be_read_and_not_before",
        "web_framing a_refusal_comes_instead_of_continue",
    ),
    "A14": ("web_framing pipelined_requests_are_answered_in_order",),
    "A15": (
        "web_framing the_connection_header_is_honoured_and_answered",
        "web_request connection_is_a_list_of_tokens",
    ),
    "A16": (
        "web_framing head_is_get_without_a_body",
        "web_framing options_is_204_on_every_path_with_what_a_browser_asks_for",
    ),
    "A17": (
        "web_framing a_half_closed_client_still_gets_an_answer_that_is_ready",
        "web_framing a_half_closed_client_does_not_keep_a_long_answer_alive",
    ),
    "A18": (
        "web_framing a_413_arrives_although_the_client_is_still_sending",
        "web_sockets a_refusal_arrives_over_tls_too",
    ),
    "A19": (
        "web_fuzz every_seed_is_taken_whole_but_those_that_we_refuse_on_purpose",
        "web_fuzz mutated_requests_raise_nothing_and_are_read_as_h11_reads_them",
    ),
    "A20": (
        "web_framing client_text_in_an_error_breaks_no_line",
        "web_framing hostile_text_in_a_handlers_header_is_made_harmless",
    ),
    "B01": ("web_connections a_burst_of_connections_meets_no_error",),
    "B02": (
        "web_connections silent_connections_are_closed_without_a_word",
        "web_connections attackers_in_every_phase_do_not_slow_a_health_check_down",
    ),
    "B03": (
        "web_connections a_head_that_arrives_byte_by_byte_has_one_deadline",
        "web_connections attackers_in_every_phase_do_not_slow_a_health_check_down",
    ),
    "B04": (
        "web_connections a_body_that_stops_is_refused_in_time",
        "web_connections a_body_below_the_lowest_rate_is_refused_though_it_never_stops",
    ),
    "B05": (
        "web_streams a_client_that_reads_nothing_is_given_up_and_nobody_waits_for_it",
        "web_streams a_backlog_that_does_not_move_is_given_up_in_time",
    ),
    "B06": (
        "web_sockets a_tls_client_that_leaves_is_noticed",
        "web_streams a_client_that_leaves_is_noticed_at_once",
    ),
    "B07": ("web_connections resets_at_any_moment_leave_nothing_behind",),
    "B08": ("catalogue_inputs who_hangs_up_while_waiting_never_reaches_the_engine",),
    "B09": (
        "web_connections when_every_place_is_worked_for_the_newcomer_is_told_so_at_once",
        "web_connections a_connection_between_two_requests_makes_room_and_a_working_one_does_not",
    ),
    "B10": ("catalogue_inputs one_more_than_the_queue_holds_is_told_to_come_again",),
    "B11": ("web_connections when_descriptors_run_out_the_server_rests_and_recovers",),
    "B12": (
        "web_connections when_no_thread_can_be_started_the_client_is_told_and_the_listener_lives",
    ),
    "B13": ("web_connections a_kept_connection_serves_so_many_requests_and_announces_its_end",),
    "B14": ("web_streams a_silent_event_stream_is_kept_alive_by_comments",),
    "B15": (
        "web_sockets a_taken_port_is_a_start_error_that_names_it",
        "web_sockets a_port_can_be_bound_again_at_once",
    ),
    "B16": (
        "web_sockets an_address_is_read_as_a_person_writes_it",
        "web_sockets ipv6_is_served_and_its_host_is_known",
    ),
    "B17": ("web_sockets nothing_is_looked_up",),
    "C01": (
        "protocol_strict_json deep_nesting_is_refused_before_the_recursive_parser_sees_it",
        "protocol_strict_json brackets_inside_strings_do_not_count_as_nesting",
    ),
    "C02": ("protocol_strict_json non_finite_numbers_are_refused_and_named",),
    "C03": (
        "protocol_chat a_wrong_max_tokens_is_refused_and_named",
        "protocol_strict_json integers_with_very_many_digits_are_refused",
    ),
    "C04": ("protocol_strict_json a_key_given_twice_is_refused_and_named",),
    "C05": (
        "protocol_strict_json a_byte_order_mark_is_let_through",
        "protocol_strict_json encodings_other_than_utf8_are_refused",
    ),
    "C06": (
        "protocol_strict_json half_surrogate_pairs_are_refused",
        "protocol_strict_json half_a_surrogate_pair_in_a_key_is_refused",
    ),
    "C07": (
        "protocol_strict_json anything_but_an_object_is_refused",
        "protocol_strict_json empty_trailing_or_lax_bodies_are_refused",
    ),
    "C08": ("protocol_chat every_field_refuses_every_wrong_json_type_by_name",),
    "C09": (
        "web_body the_sum_of_the_chunks_is_bounded_before_they_arrive",
        "web_body an_announced_length_is_checked_before_a_byte_is_read",
    ),
    "C10": ("web_framing the_body_budget_is_shared_refused_and_given_back",),
    "C11": ("protocol_chat unknown_fields_are_ignored_and_named",),
    "C12": ("web_framing a_doubtful_request_is_refused_once_and_what_follows_is_never_read",),
    "D01": ("protocol_chat a_wrong_temperature_is_refused_in_words_that_say_what_is_right",),
    "D02": (
        "catalogue_inputs a_value_out_of_range_is_a_400_that_names_its_field",
        "catalogue_inputs a_value_at_the_edge_is_served",
    ),
    "D03": (
        "catalogue_inputs a_value_out_of_range_is_a_400_that_names_its_field",
        "catalogue_inputs more_choices_than_slots_take_turns_and_all_arrive",
    ),
    "D04": (
        "catalogue_inputs a_value_out_of_range_is_a_400_that_names_its_field",
        "catalogue_inputs the_end_of_the_context_is_a_finish_reason_and_the_usage_is_right",
    ),
    "D05": (
        "catalogue_inputs a_value_out_of_range_is_a_400_that_names_its_field",
        "catalogue_inputs a_huge_penalty_window_takes_no_memory",
    ),
    "D06": (
        "catalogue_inputs a_value_out_of_range_is_a_400_that_names_its_field",
        "catalogue_inputs a_value_at_the_edge_is_served",
    ),
    "D07": (
        "catalogue_inputs a_value_out_of_range_is_a_400_that_names_its_field",
        "catalogue_inputs a_value_at_the_edge_is_served",
    ),
    "D08": (
        "catalogue_inputs a_value_out_of_range_is_a_400_that_names_its_field",
        "catalogue_inputs text_held_back_for_a_stop_string_is_told_at_the_end",
    ),
    "D09": (
        "catalogue_inputs a_value_out_of_range_is_a_400_that_names_its_field",
        "catalogue_inputs a_value_at_the_edge_is_served",
    ),
    "D10": (
        "catalogue_inputs a_prompt_of_no_tokens_or_of_impossible_ones_is_a_400",
        "http_server a_token_id_outside_the_vocabulary_is_a_400",
    ),
    "D11": (
        "catalogue_inputs a_prompt_may_fill_the_context_but_for_one_token",
        "catalogue_inputs a_prompt_of_fifty_megabytes_is_refused_unread",
    ),
    "D12": ("catalogue_inputs the_end_of_the_context_is_a_finish_reason_and_the_usage_is_right",),
    "D13": ("catalogue_inputs a_full_cache_lets_the_youngest_wait_and_nobody_fails",),
    "D14": (
        "catalogue_faults a_seed_gives_the_same_text_after_a_restart",
        "protocol_chat seeds_of_any_size_have_a_defined_meaning",
    ),
    "D15": ("catalogue_inputs a_model_of_nan_weights_is_a_500_with_its_own_code",),
    "D16": (
        "catalogue_inputs a_character_of_several_tokens_is_told_whole",
        "catalogue_inputs a_stop_string_that_is_a_split_character_leaves_nothing_of_it",
    ),
    "D17": ("http_chat control_tokens_that_a_user_types_stay_text",),
    "D18": (
        "catalogue_inputs a_long_prompt_does_not_stop_the_streams",
        "engine_scheduling a_long_prompt_holds_no_stream_up_for_more_than_three_of_its_steps",
    ),
    "D19": ("catalogue_inputs hanging_up_during_the_prefill_ends_it_there",),
    "E01": (
        "grammar_gbnf thousands_of_open_groups_are_refused",
        "grammar_gbnf nesting_of_64_is_served_and_65_is_not",
    ),
    "E02": ("grammar_gbnf a_chain_of_250_rules_is_served_and_257_is_not",),
    "E03": ("grammar_gbnf two_to_the_n_beginnings_are_refused",),
    "E04": (
        "grammar_ambiguity a_grammar_with_too_many_ways_to_read_a_token_is_refused",
        "grammar_ambiguity a_grammar_as_people_write_them_is_served",
    ),
    "E05": (
        "grammar_json_schema a_deeper_schema_is_refused",
        "grammar_json_schema a_reference_that_leads_out_is_refused_and_never_fetched",
    ),
    "E06": ("grammar_json_schema a_pattern_that_explodes_elsewhere_is_linear_here",),
    "E07": (
        "llama_sampler a_grammar_that_no_token_fits_is_an_error_of_the_request",
        "grammar_native a_grammar_holds_whatever_the_other_samplers_leave",
    ),
    "E08": ("grammar_native a_token_limit_in_the_middle_of_an_object_says_length",),
    "E09": (
        "http_tools what_no_grammar_can_say_is_a_400_that_names_the_field",
        "llama_sampler a_grammar_that_does_not_parse_is_refused_in_every_build",
    ),
    "E10": (
        "grammar_native libllama_survives_every_random_grammar_that_the_checker_lets_pass",
        "grammar_fuzz a_random_schema_is_refused_or_what_it_writes_is_valid",
    ),
    "E11": ("chat_jinja_escapes no_way_out",),
    "E12": (
        "chat_jinja_limits a_template_that_would_take_for_ever_is_stopped",
        "chat_jinja_limits a_template_that_would_take_all_memory_is_stopped_before",
    ),
    "E13": ("chat_jinja_limits the_real_number_of_steps_is_enough_for_long_conversations",),
    "E14": ("protocol_chat a_chat_template_in_the_request_is_refused",),
    "F01": (
        "catalogue_faults a_crash_costs_one_request_and_neither_neighbours_nor_twenty_who_wait",
        "catalogue_faults a_stream_that_is_cut_by_a_crash_is_well_formed_to_its_end",
    ),
    "F02": (
        "catalogue_faults what_happens_to_the_engine_costs_no_character",
        "catalogue_faults those_who_were_there_in_two_crashes_fail_and_the_engine_goes_on",
    ),
    "F03": ("catalogue_faults kills_under_sixteen_streams_hang_nobody_and_change_no_text",),
    "F04": (
        "catalogue_faults a_hang_is_ended_blamed_and_told_by_health",
        "catalogue_faults a_hang_in_sample_is_the_fault_of_whoever_is_sampled",
    ),
    "F05": ("catalogue_faults a_body_that_crashes_the_engine_is_refused_from_the_third_time_on",),
    "F06": ("catalogue_faults an_engine_that_keeps_crashing_is_left_alone_and_then_tried_again",),
    "F07": (
        "catalogue_faults what_cannot_be_loaded_is_exit_code_1_and_one_line",
        "catalogue_faults an_engine_whose_model_file_is_gone_comes_back_with_it",
    ),
    "F08": (
        "catalogue_faults an_engine_out_of_memory_is_a_crash_like_any_other",
        "catalogue_faults a_model_beyond_the_memory_limit_is_one_clear_line_at_the_start",
    ),
    "F09": ("supervise_http when_the_server_is_killed_its_engine_is_gone_and_its_port_is_free",),
    "F10": ("catalogue_faults what_happens_to_the_engine_costs_no_character",),
    "F11": ("catalogue_faults what_happens_to_the_engine_costs_no_character",),
    "F12": ("catalogue_faults a_front_that_stands_still_loses_nothing",),
    "F13": (
        "catalogue_faults changed_model_files_never_hurt_the_front",
        "llama_load_fuzz no_model_that_passes_the_preflight_kills_the_process",
    ),
    "F14": (
        "catalogue_misuse a_misuse_is_refused_in_python_and_all_goes_on",
        "catalogue_misuse a_misuse_that_can_be_served_does_no_harm",
    ),
    "F15": (
        "catalogue_process a_signal_while_loading_is_a_clean_end",
        "catalogue_process a_signal_between_two_engines_is_a_clean_end",
    ),
    "F16": ("catalogue_faults a_machine_that_sleeps_is_no_hung_engine",),
    "F17": ("supervise_simulation every_request_ends_exactly_once_with_the_right_text",),
    "G01": (
        "web_access with_listed_origins_a_foreign_host_is_refused",
        "web_access allowed_hosts_are_checked_also_when_every_origin_may_ask",
    ),
    "G02": (
        "web_access a_page_must_declare_its_json_where_origins_are_listed",
        "web_framing where_origins_are_listed_nothing_foreign_reaches_a_handler",
    ),
    "G03": (
        "web_access with_listed_origins_another_origin_is_refused_and_gets_no_cors_field",
        "web_access a_rebound_host_is_not_its_own_page",
    ),
    "G04": (
        "web_access a_key_is_found_or_the_request_refused",
        "web_framing a_wrong_key_costs_no_body",
    ),
    "G05": ("web_access every_comparison_is_constant_time_and_none_is_left_out",),
    "G06": (
        "protocol_embeddings health_says_what_is_wrong_and_no_more",
        "web_framing options_is_204_on_every_path_with_what_a_browser_asks_for",
    ),
    "G07": (
        "web_framing no_line_of_the_log_holds_a_key_a_query_or_a_raw_control_character",
        "web_log client_text_is_escaped_and_cut",
    ),
    "G08": ("catalogue_security no_name_in_a_request_is_a_path",),
    "G09": ("catalogue_security no_client_hears_what_another_said",),
    "G10": ("catalogue_security what_another_key_has_cached_changes_no_text",),
    "G11": (
        "catalogue_security keys_and_prompts_stay_out_of_logs_command_lines_and_crashes",
        "web_framing no_line_of_the_log_holds_a_key_a_query_or_a_raw_control_character",
    ),
    "G12": (
        "catalogue_security nothing_connects_to_anywhere_and_no_name_is_looked_up",
        "catalogue_security the_hook_of_the_case_above_does_bite",
    ),
    "H01": (
        "catalogue_process what_runs_and_what_waits_is_finished_before_the_end",
        "catalogue_process health_says_draining_on_a_connection_that_was_open",
    ),
    "H02": (
        "catalogue_process the_second_signal_ends_at_once",
        "catalogue_process ctrl_c_of_a_terminal_does_not_reach_the_engine",
    ),
    "H03": ("http_server hangup_reads_the_key_file_again_and_sigterm_ends_with_0",),
    "H04": (
        "web_log a_reader_that_stops_costs_lines_and_no_time",
        "web_log a_closed_or_full_stream_is_counted_and_survived",
    ),
    "H05": (
        "catalogue_process a_full_disk_ends_the_saving_of_prefixes_and_nothing_else",
        "catalogue_process with_room_on_the_disk_the_same_prompts_are_saved",
    ),
    "H06": (
        "catalogue_process health_while_loading_is_503_and_requests_are_told_to_come_again",
        "catalogue_process health_says_loading_until_it_is_ok",
    ),
    "H07": ("web_sockets an_accepted_connection_is_not_inherited_by_a_child",),
    "H08": ("supervise_child on_windows_the_child_sits_in_a_job_that_dies_with_the_front",),
    "H09": (),
    "H10": ("layers nothing_is_newer_than_python_3_9",),
    "H11": (
        "catalogue_security health_counts_restarts_and_says_how_the_engine_ended",
        "catalogue_security every_refusal_is_counted_by_its_reason_and_every_answer_by_its_route",
    ),
}
# What is left out of a case, and why.
PARTLY = {
    "A19": "a bounded number of mutations here; IGLLAMA_FUZZ_ROUNDS runs the million",
    "B01": "300 threads here; scripts/soak.py --figures connects 1,000 at once and takes the time",
    "B03": "scripts/soak.py --figures has 1,500 attackers and the time of /health meanwhile",
    "B04": "as B03",
    "B05": "as B03",
    "D09": "for chat and embeddings; there is no endpoint that takes a bare prompt",
    "D10": "for embeddings; no other endpoint takes token ids",
    "E13": "long conversations and large tools; roles unknown to a template are its own affair",
    "F03": "10 kills here, 100 with IGLLAMA_LONG=1 and in scripts/soak.py --figures",
    "F13": "a bounded number here; IGLLAMA_FUZZ_ROUNDS=5000 runs the catalogue's",
    "F16": "the processes sleep; the clock itself is not set, which would be the whole machine's: "
    "all deadlines are on the monotonic clock",
    "G10": "documented in the README; no answer differs, but the time to its first token may",
    "H08": "no Windows at hand: the Job Object is tested against a stand-in of the same sizes",
    "H09": "no Mac at hand: the child is spawned, never forked, by one call on every system",
    "H10": "one Python a run; what is newer than 3.9, in names or syntax, is found by every run",
}


def cases() -> list[str]:
    return [f"{group}{n:02d}" for group, size in SIZES.items() for n in range(1, size + 1)]


def functions_in(module: str) -> set[str]:
    path = TESTS / f"test_{module}.py"
    if not path.exists():
        return set()
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in found if isinstance(node, ast.FunctionDef)}


def missing(held_by: dict[str, tuple[str, ...]]) -> list[str]:
    """Return the named tests that do not exist."""
    names = [name.split() for names in held_by.values() for name in names]
    return [
        f"{module} {name}" for module, name in names if f"test_{name}" not in functions_in(module)
    ]


def test_the_catalogue_is_complete():
    assert len(cases()) == 122
    assert list(HELD_BY) == cases()


def test_every_test_that_is_named_exists():
    assert missing(HELD_BY) == []


def test_a_test_that_was_renamed_is_noticed():
    assert missing({"A01": ("catalogue_index no_such_test", "no_such_module x")}) == [
        "catalogue_index no_such_test",
        "no_such_module x",
    ]


@pytest.mark.parametrize("case", [case for case, names in HELD_BY.items() if not names])
def test_a_case_without_a_test_has_a_reason(case):
    assert len(PARTLY.get(case, "")) > 20


def test_reasons_are_given_for_cases_only():
    assert set(PARTLY) <= set(HELD_BY)
