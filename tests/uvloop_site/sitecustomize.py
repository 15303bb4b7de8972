"""Makes uvloop the default event loop of every process started with this folder on `PYTHONPATH`.

Event loop policies are deprecated since Python 3.14, and programs started by the tests have no option for the
loop.
"""

import asyncio

import uvloop

asyncio.new_event_loop = asyncio.events.new_event_loop = uvloop.new_event_loop
