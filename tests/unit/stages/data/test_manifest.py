import dataclasses

import pytest

from cluster.errors import UserError
from stages.context import Output, read_output
from stages.data.manifest import dataset_meta


def changed(output, **meta):
    return Output(prefix=output.prefix, manifest={**output.manifest, "meta": {**output.meta, **meta}})


def test_the_description_survives_storage(digits):
    storage, output = digits
    meta = dataset_meta(read_output(storage, output.prefix))
    assert meta == dataset_meta(output)
    assert meta.to_meta() == output.meta


def test_shards_of_several_splits_lie_end_to_end(digits):
    meta = dataset_meta(digits[1])
    assert meta.shards(["train", "test"]) == (*meta.splits["train"].shards, *meta.splits["test"].shards)


def test_an_unknown_split_is_answered_with_the_ones_that_there_are(digits):
    with pytest.raises(UserError, match=r"'tset'.*train, validation, test, held_out, held_out_test"):
        dataset_meta(digits[1]).shards(["tset"])


def test_a_newer_format_and_another_kind_are_refused(digits):
    _, output = digits
    with pytest.raises(UserError, match="install a newer"):
        dataset_meta(changed(output, format=2))
    with pytest.raises(UserError, match="is a model"):
        dataset_meta(dataclasses.replace(output, manifest={**output.manifest, "kind": "model"}))
