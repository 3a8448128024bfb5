"""HTML pages from Jinja templates."""

from collections.abc import Callable
from pathlib import Path

import jinja2


def template(file: Path, **filters: Callable[..., str]) -> jinja2.Template:
    """Load the template in `file`, which may use `filters`.

    Rendering raises jinja2.UndefinedError for a name without a value.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(file.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(file.name)
