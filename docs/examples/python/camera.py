"""Sends a folder of pictures, ten a second: python camera.py press-3 FOLDER"""

import os
import sys
from pathlib import Path

from worker.producer import Producer, connect, folder_images

line, folder = sys.argv[1], Path(sys.argv[2])
client = connect(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
with Producer(client, line, rate=10, batch=4, linger=0.2, sent=print) as producer:
    for image in folder_images(folder, skipped=print):
        producer.add(image)
