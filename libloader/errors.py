"""The error tree: one class per cause, raised where the cause is known.

Laws:
- No HTTP number lives here; igllama.py holds the one table that maps classes to statuses.
- A message names the field, file or symbol at fault and what the reader can do about it.
- Whatever crosses the pipe between front and engine child does so as `to_wire` / `from_wire`.

    IgllamaError
      StartError            the server cannot start or load: one line, exit code 1
        LibraryNotFound       no usable libllama in any place looked at
        LibraryRefused        this file was looked at and is not usable
          LayoutMismatch        its struct layout is unknown: the first differing field is named
          SymbolsMissing        functions that we need are not exported
        ModelFileInvalid      not a loadable GGUF file
        ModelLoadFailed       libllama refused the model or the context
      UsageError            a wrong flag or value: one line, exit code 2
      RequestError          the client's mistake; `param` names the field
        BodyInvalid           not the strict JSON object that is expected
        FieldInvalid          a field has the wrong type or is out of range
        FieldUnsupported      a field asks for what this server or this library does not do
        PromptTooLong         the prompt does not fit the context of a slot
        ModelNotFound         a model id that is not served here
        TemplateError         the chat template cannot render these messages
          TemplateRaised        the template said so itself, with raise_exception
        GrammarInvalid        a grammar or schema that cannot be used
        RequestPoisoned       this body crashed the engine twice; refused for a while
      ServerError           ours
        EngineUnavailable     loading, restarting, stalled or failed
        EngineCrashed         the engine died while it worked on this request
        ServerDraining        the server is shutting down
        QueueFull             too many waiting requests
        DecodeFailed          llama_decode refused a batch that should be right
        NanLogits             the model produced no usable numbers
        CapabilityMissing     the loaded libllama build lacks a function
      ClientGone            the client closed its connection; nobody is left to be told
"""

from __future__ import annotations

from collections.abc import Iterator


class IgllamaError(Exception):
    """Base of all errors raised on purpose. `str(error)` is a sentence for a person."""

    def __init__(
        self,
        message: str = "",
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class StartError(IgllamaError):
    pass


class LibraryNotFound(StartError):
    pass


class LibraryRefused(StartError):
    pass


class LayoutMismatch(LibraryRefused):
    pass


class SymbolsMissing(LibraryRefused):
    pass


class ModelFileInvalid(StartError):
    pass


class ModelLoadFailed(StartError):
    pass


class UsageError(IgllamaError):
    pass


class RequestError(IgllamaError):
    pass


class BodyInvalid(RequestError):
    pass


class FieldInvalid(RequestError):
    pass


class FieldUnsupported(RequestError):
    pass


class PromptTooLong(RequestError):
    pass


class ModelNotFound(RequestError):
    pass


class TemplateError(RequestError):
    """`line` is the line of the template, 0 when unknown; `reason` is the message without it."""

    def __init__(self, reason: str = "", *, line: int = 0, param: str | None = None) -> None:
        super().__init__(f"{reason} (template line {line})" if line else reason, param=param)
        self.reason = reason
        self.line = line


class TemplateRaised(TemplateError):
    pass


class GrammarInvalid(RequestError):
    pass


class RequestPoisoned(RequestError):
    pass


class ServerError(IgllamaError):
    pass


class EngineUnavailable(ServerError):
    pass


class EngineCrashed(ServerError):
    pass


class ServerDraining(ServerError):
    pass


class QueueFull(ServerError):
    pass


class DecodeFailed(ServerError):
    pass


class NanLogits(ServerError):
    pass


class CapabilityMissing(ServerError):
    pass


class ClientGone(IgllamaError):
    pass


def all_classes(root: type[IgllamaError] = IgllamaError) -> Iterator[type[IgllamaError]]:
    """Yield `root` and every class below it."""
    yield root
    for child in root.__subclasses__():
        yield from all_classes(child)


def to_wire(error: IgllamaError) -> dict[str, object]:
    """Return plain values from which `from_wire` makes the same error in another process."""
    return {
        "name": type(error).__name__,
        "message": error.message,
        "param": error.param,
        "retry_after_s": error.retry_after_s,
    }


def from_wire(data: dict[str, object]) -> IgllamaError:
    """Rebuild an error from `to_wire`'s values; an unknown name becomes a ServerError."""
    known = {cls.__name__: cls for cls in all_classes()}
    cls = known.get(str(data.get("name")), ServerError)
    error = cls(str(data.get("message", "")))
    param, retry_after_s = data.get("param"), data.get("retry_after_s")
    error.param = param if isinstance(param, str) else None
    error.retry_after_s = float(retry_after_s) if isinstance(retry_after_s, (int, float)) else None
    return error
