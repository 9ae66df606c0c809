"""Why a request of the control API is refused (protocol 6 and 7): status, code and a sentence."""

__all__ = ["Refusal", "already_exists", "fenced", "invalid"]


class Refusal(Exception):
    """Ends a handler; `details` are further members of the error object."""

    def __init__(self, status: int, code: str, message: str, **details: object) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.details = details


def invalid(message: str) -> Refusal:
    """The request itself is wrong."""
    return Refusal(400, "INVALID_REQUEST", message)


def fenced() -> Refusal:
    """The wake that the request is about is over."""
    return Refusal(409, "FENCED", "This wake is over: its lease ran out, or it was released.")


def already_exists() -> Refusal:
    """The id is taken."""
    message = "There is a subscription with this id and another configuration."
    return Refusal(409, "SUBSCRIPTION_ALREADY_EXISTS", message)
