// Installs a wheel into the CPython that pyodide carries, and says as JSON what works there: node newer_python.mjs WHEEL SITE
// SITE: packages of another Python, of which those without compiled parts serve as dependencies.
import { loadPyodide } from "pyodide";

const [wheel, site] = process.argv.slice(2);
const python = await loadPyodide();
const folder = wheel.slice(0, wheel.lastIndexOf("/"));
for (const [from, to] of [[folder, "/wheel"], [site, "/dependencies"]]) {
  python.FS.mkdir(to);
  python.FS.mount(python.FS.filesystems.NODEFS, { root: from }, to);
}
python.globals.set("wheel", "/wheel/" + wheel.slice(folder.length + 1));
const said = python.runPython(`
import contextlib, importlib, importlib.metadata, io, json, re, sys, sysconfig, warnings, zipfile
from pathlib import Path

site = Path(sysconfig.get_path("purelib"))
zipfile.ZipFile(wheel).extractall(site)
importlib.invalidate_caches()
sys.path.append("/dependencies")
files = sorted((site / "bdflow").rglob("*.py"))
for file in files:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile(file.read_text(encoding="utf-8"), str(file), "exec")

import bdflow

imported, lacking, failed = 0, {}, {}
for file in files:
    parts = file.relative_to(site).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if parts[-1] == "__main__":
        continue
    try:
        importlib.import_module(name)
        imported += 1
    except ImportError as error:  # what is compiled for another Python
        named = re.search("No module named '([^']+)'", str(error))
        lacking[name] = named[1] if named else str(error)
    except (AttributeError, NameError, SyntaxError, TypeError) as error:
        failed[name] = f"{type(error).__name__}: {error}"
    except Exception as error:  # libraries that cannot load their compiled parts say so in many ways
        lacking[name] = type(error).__name__
said = ""
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    entry = next(of for of in importlib.metadata.entry_points(group="console_scripts") if of.name == "bdflow")
    sys.argv = ["bdflow", "--version"]
    entry.load()()
said = out.getvalue().strip()
json.dumps({
    "python": list(sys.version_info[:2]), "version": bdflow.__version__,
    "installed": importlib.metadata.version("bdflow"), "compiled": len(files), "imported": imported,
    "lacking": lacking, "failed": failed, "said": said,
})
`);
console.log(said);
process.exit(0);
