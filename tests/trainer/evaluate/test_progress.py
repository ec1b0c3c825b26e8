import io

from trainer.evaluate.progress import Line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_keeps_one_line_and_a_log_all():
    for stream, wanted in ((Terminal(), "\r\x1b[Kone\r\x1b[Ktwo\n"), (io.StringIO(), "one\ntwo\n")):
        line = Line(stream)
        for text in ("one", "two"):
            line.show(text)
        line.keep()
        line.keep()
        assert stream.getvalue() == wanted


def test_what_is_longer_than_the_terminal_is_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    Line(stream).show("x" * 100)
    assert stream.getvalue() == "\r\x1b[K" + "x" * 29
