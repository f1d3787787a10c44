"""From "some libllama on this machine" to C functions that can be trusted.

    find         candidates in every place     places, platforms, binary, refusal; unpack, manifest
    library      opens one, proves it, offers its functions under one vocabulary
      detect       which build (its functions), which layouts (its default parameters)
        layouts/     the tables, one module per change; made by scripts/abi_check.py
        structs      a table as ctypes; parameters by their newest names
      prototypes   the rows: functions, older names, changed arguments, capabilities
        binding      rows into callables
      hazards      what is wrong in which builds
        guards       the last check before C
      nativelog    C's log in Python's levels

Callers need `find.find_library` and `library.load`; the rest is theirs.
"""
