"""Where settings come from: flag, then environment, then configuration file, then the default.

A setting `body_bytes_max` is the key `body-bytes-max` in the TOML file,
`DURABLE_STREAMSD_BODY_BYTES_MAX` in the environment, and some have a flag (`config.FLAGS`) whose
name, without the dashes in front, works in the other two places as well. Dashes and underscores
mean the same. A key that nobody knows is refused: it is a misspelt one that would otherwise not
take effect.

`lines` knows on which line of the file a key stands, `sources` finds what was given, `values` turns
words into values and says what was expected, `loading` puts it all together, `listing` shows it.
What there is to set is in `config`.
"""
