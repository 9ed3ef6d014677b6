"""The benchmark client's script, as the serving environment starts it: by its path, with nothing of ours to import."""

import subprocess
import sys

from evals.load.run import CLIENT


def test_the_scripts_folder_hides_no_library() -> None:
    """Our requests.py lies beside the script: `import requests` in vLLM must still be the library."""
    program = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2], run_name='client');"
        "import requests; print(requests.__file__)"
    )
    command = [sys.executable, "-c", program, str(CLIENT.parent), str(CLIENT)]
    found = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True, env={}).stdout
    assert "site-packages" in found
