"""PyFlink's setters of checkpointing: each is a configuration key, and the getters read them back."""

from __future__ import annotations

from datetime import timedelta

import pytest

from engine.checkpoint.settings import checkpoint_settings
from engine.common import Duration, Time
from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.datastream import (
    CheckpointingMode,
    EmbeddedRocksDBStateBackend,
    ExternalizedCheckpointCleanup,
    ExternalizedCheckpointRetention,
    FileSystemCheckpointStorage,
    HashMapStateBackend,
    JobManagerCheckpointStorage,
    StreamExecutionEnvironment,
)


@pytest.fixture
def env() -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment.get_execution_environment(Configuration())


def test_enable_checkpointing_sets_interval_and_mode(env):
    assert not env.get_checkpoint_config().is_checkpointing_enabled()
    assert env.get_checkpoint_interval() == -1
    assert env.enable_checkpointing(1000, CheckpointingMode.AT_LEAST_ONCE) is env
    assert (env.get_checkpoint_interval(), env.get_checkpointing_mode()) == (1000, CheckpointingMode.AT_LEAST_ONCE)
    settings = checkpoint_settings(env._config)
    assert (settings.interval_ms, settings.at_least_once) == (1000, True)


def test_every_setter_of_the_config_is_what_the_job_is_run_with(env):
    config = env.enable_checkpointing(100).get_checkpoint_config()
    config.set_checkpoint_timeout(200).set_min_pause_between_checkpoints(30).set_max_concurrent_checkpoints(1)
    config.set_tolerable_checkpoint_failure_number(4).enable_unaligned_checkpoints()
    config.set_aligned_checkpoint_timeout(timedelta(seconds=5))
    config.set_externalized_checkpoint_retention(ExternalizedCheckpointRetention.RETAIN_ON_CANCELLATION)
    config.set_checkpoint_storage(FileSystemCheckpointStorage("file:///c", 100))
    settings = checkpoint_settings(env._config)
    assert (settings.timeout_ms, settings.min_pause_ms, settings.tolerable_failures) == (200, 30, 4)
    assert (settings.unaligned, settings.aligned_timeout_ms, settings.inline_bytes_max) == (True, 5000, 100)
    assert settings.retain_on_cancellation
    assert not settings.in_memory
    assert config.get_aligned_checkpoint_timeout() == timedelta(seconds=5)
    assert config.get_checkpoint_storage().get_checkpoint_path() == "file:///c"
    config.set_checkpoint_storage(JobManagerCheckpointStorage())
    assert checkpoint_settings(env._config).in_memory
    assert checkpoint_settings(env._config).state_bytes_max == 5 << 20
    config.set_checkpoint_storage(JobManagerCheckpointStorage(max_state_size=1234))
    assert checkpoint_settings(env._config).state_bytes_max == 1234
    assert config.get_checkpoint_storage().get_max_state_size() == 1234


def test_names_before_flink_2_mean_the_same(env):
    config = env.get_checkpoint_config()
    config.enable_externalized_checkpoints(ExternalizedCheckpointCleanup.DELETE_ON_CANCELLATION)
    assert config.get_externalized_checkpoint_cleanup() is ExternalizedCheckpointRetention.DELETE_ON_CANCELLATION
    config.set_fail_on_checkpointing_errors(False)
    assert not config.is_fail_on_checkpointing_errors()


def test_a_setter_wins_over_an_old_spelling_in_the_configuration(env):
    env.configure(Configuration({"execution.checkpointing.unaligned": "true", "state.backend": "rocksdb"}))
    env.get_checkpoint_config().disable_unaligned_checkpoints()
    env.set_state_backend(HashMapStateBackend())
    assert not env.is_unaligned_checkpoints_enabled()
    assert isinstance(env.get_state_backend(), HashMapStateBackend)


def test_the_rocksdb_backend_says_increments_and_folders(env):
    backend = EmbeddedRocksDBStateBackend(True)
    backend.set_db_storage_paths("/a", "/b")
    env.set_state_backend(backend)
    found = env.get_state_backend()
    assert isinstance(found, EmbeddedRocksDBStateBackend)
    assert (found.is_incremental_checkpoints_enabled(), found.get_db_storage_paths()) == (True, ["/a", "/b"])


def test_durations_are_taken_in_every_form(env):
    config = env.get_checkpoint_config()
    config.set_checkpoint_timeout(Duration.of_seconds(3)).set_min_pause_between_checkpoints(timedelta(seconds=2))
    config.set_aligned_checkpoint_timeout(Time.seconds(1))
    assert config.get_checkpoint_timeout() == 3000
    assert config.get_min_pause_between_checkpoints() == 2000
    assert config.get_aligned_checkpoint_timeout() == timedelta(seconds=1)


def test_savepoints_have_a_default_folder(env):
    assert env.get_default_savepoint_directory() is None
    env.set_default_savepoint_directory("hdfs:///sp")
    assert env.get_default_savepoint_directory() == "hdfs:///sp"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda env: env.enable_checkpointing(5), r"set_checkpoint_interval\(5\): .*at least 10 ms"),
        (lambda env: env.get_checkpoint_config().set_checkpoint_timeout(1), "set_checkpoint_timeout"),
        (lambda env: env.get_checkpoint_config().set_max_concurrent_checkpoints(0), "at least 1"),
        (lambda env: env.enable_checkpointing(1000, "EXACTLY_ONCE"), "one of CheckpointingMode.EXACTLY_ONCE"),
        (
            lambda env: env.get_checkpoint_config().set_externalized_checkpoint_retention("RETAIN_ON_CANCELLATION"),
            "one of ExternalizedCheckpointRetention.DELETE_ON_CANCELLATION",
        ),
        (lambda env: env.get_checkpoint_config().set_checkpoint_storage("/c"), "set_checkpoint_storage_dir.path"),
        (lambda env: env.set_state_backend("rocksdb"), r"expected HashMapStateBackend\(\)"),
        (lambda env: env.set_state_backend(HashMapStateBackend), r"expected HashMapStateBackend\(\)"),
        (lambda env: env.set_restart_strategy("none"), "expected one of RestartStrategies"),
        (lambda env: env.set_max_parallelism("4"), "expected 1 to"),
        (lambda env: JobManagerCheckpointStorage(None, -1), "a number of bytes"),
        (lambda env: FileSystemCheckpointStorage("/c", "1MB"), "at most 1048576 bytes"),
        (lambda env: FileSystemCheckpointStorage(""), "needs a folder"),
        (lambda env: FileSystemCheckpointStorage("/c", 1 << 30), "at most 1048576 bytes"),
    ],
)
def test_values_that_cannot_be_used_are_told_where_they_were_given(env, wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong(env)
