"""The same in an event loop: python camera_async.py press-3 FOLDER"""

import asyncio
import os
import sys
from pathlib import Path

from worker.producer import AsyncProducer, connect_async, folder_images


async def main(line: str, folder: Path) -> None:
    client = await connect_async(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
    async with AsyncProducer(client, line, rate=10, batch=4, linger=0.2) as producer:
        for image in folder_images(folder, skipped=print):
            await producer.add(image)
    await client.aclose()


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
