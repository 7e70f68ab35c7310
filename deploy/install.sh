#!/usr/bin/env bash
# Installs what vbd depends on into the Python of this container, in the versions of constraints.txt, which lie in the folder
# that is given. Does nothing when it has done so before: a second start takes no time, nor does an image made by Dockerfile.
set -euo pipefail
folder=$1
stamp=$HOME/.vbd-installed

# The token of the cluster belongs to the user of the machine, who is not on every cloud the user of the container.
[ ! -e "$folder/auth_token" ] || [ -O "$folder/auth_token" ] || sudo chown "$(id -u)" "$folder/auth_token"

wanted=$(cat "$folder/constraints.txt" "$folder/pyproject.toml" | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  echo "vbd: what constraints.txt pins is installed"
  exit 0
fi
complaint=$(python "$folder/deploy/check_python.py" python)
[ -z "$complaint" ] || { echo "error: $complaint; choose another image" >&2; exit 2; }
requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
python -c '
import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")
' "$folder/pyproject.toml" > "$requirements"
pip install --quiet --requirement "$requirements" --constraint "$folder/constraints.txt"
# Two packages bring the module cv2: keep the one that needs no graphics libraries (libgl1) of the system.
pip install --quiet --force-reinstall --no-deps --constraint "$folder/constraints.txt" opencv-python-headless
echo "$wanted" > "$stamp"
