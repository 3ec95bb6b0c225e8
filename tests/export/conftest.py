import pytest
from tiny_students import make_student

from tiny_teacher import make_texts

pytest.importorskip("onnx", reason="the extra onnx is not installed")


@pytest.fixture(scope="session")
def texts():
    return make_texts(24, seed=5)


@pytest.fixture(scope="session")
def batches(texts, tokenizer):
    from kdnas_hf.export import text_batches

    return text_batches(texts, tokenizer, batch_size=6, max_length=32)


@pytest.fixture(scope="session")
def graph_of(tmp_path_factory):
    """The ONNX graph of a tiny student, exported once."""
    from kdnas_hf.export import export_onnx

    folder = tmp_path_factory.mktemp("graphs")

    def graph(kind="encoder"):
        path = folder / f"{kind}.onnx"
        if not path.exists():
            export_onnx(make_student(kind), path)
        return path

    return graph


@pytest.fixture
def student_folder(tmp_path, tokenizer):
    folder = tmp_path / "student"
    make_student().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(make_texts(200, seed=7)), encoding="utf-8")
    return path
