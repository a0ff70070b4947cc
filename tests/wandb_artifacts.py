"""The artifacts of the service in wandb_service.py: collections of versions, their aliases, files, makers and users."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ENTITY = "team"
PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}


@dataclass
class Version:
    """One version, from the client's announcement on."""

    id: str
    project: str
    collection: str
    kind: str
    digest: str
    metadata: str
    maker: str
    wanted: list[str]
    number: int = -1
    aliases: set[str] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    users: set[str] = field(default_factory=set)

    @property
    def state(self) -> str:
        return "PENDING" if self.number < 0 else "COMMITTED"

    @property
    def name(self) -> str:
        return f"{self.collection}:v{self.number}"


class Store:
    """Answers what the client asks about artifacts; ``versions`` in order of announcement."""

    def __init__(self, url: str) -> None:
        self.url, self.versions = url, list[Version]()

    def committed(self, project: str, collection: str) -> list[Version]:
        found = [v for v in self.versions if (v.project, v.collection) == (project, collection) and v.number >= 0]
        return sorted(found, key=lambda version: version.number)

    def put(self, path: str, body: bytes) -> None:
        """``/artifact/ID/NAME``."""
        _, _, number, name = path.split("/", 3)
        self._by_id(number).files[name] = body

    def get(self, path: str) -> bytes:
        _, _, number, name = path.split("/", 3)
        return self._by_id(number).files[name]

    def _by_id(self, number: str) -> Version:
        return next(version for version in self.versions if version.id == number)

    def answer(self, name: str, told: dict[str, Any]) -> dict[str, Any] | None:
        """None for what is not about artifacts."""
        method = getattr(self, f"_{name}", None)
        return method(told.get("input") or told) if method else None

    def _CreateArtifact(self, told: dict[str, Any]) -> dict[str, Any]:
        project, collection = told["projectName"], told["artifactCollectionName"]
        wanted = [alias["alias"] for alias in told["aliases"]]
        there = [v for v in self.committed(project, collection) if v.digest == told["digest"]]
        if there and told["enableDigestDeduplication"]:
            self._call(there[0], wanted)
            found = there[0]
        else:
            about = told["artifactTypeName"], told["digest"], told["metadata"], told["runName"]
            found = Version(f"a{len(self.versions)}", project, collection, *about, wanted)
            self.versions.append(found)
        last = {"id": versions[-1].id} if (versions := self.committed(project, collection)) else None
        artifact = {"id": found.id, "state": found.state, "artifactSequence": {"latestArtifact": last}}
        return {"createArtifact": {"artifact": artifact}}

    def _call(self, version: Version, aliases: list[str]) -> None:
        for other in self.committed(version.project, version.collection):
            other.aliases -= set(aliases)
        version.aliases |= set(aliases)

    def _CreateArtifactManifest(self, told: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/artifact/{told['artifactID']}/{told['name']}"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": told["artifactID"], "file": file}}}

    def _CreateArtifactFiles(self, told: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {"storagePath": file["name"], "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{file['name']}"}
            | {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}
            for file in told["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, told: dict[str, Any]) -> dict[str, Any]:
        version = self._by_id(told["artifactID"])
        version.number = len(self.committed(version.project, version.collection))
        self._call(version, version.wanted)
        return {"commitArtifact": {"artifact": {"id": version.id, "digest": version.digest}}}

    def _UseArtifact(self, told: dict[str, Any]) -> dict[str, Any]:
        version = self._by_id(told["artifactID"])
        version.users.add(told["runName"])
        return {"useArtifact": {"artifact": {"id": version.id}}}

    def _ProjectArtifacts(self, told: dict[str, Any]) -> dict[str, Any]:
        versions = self._of(told, "collection")
        nodes = [{"version": f"v{version.number}", "node": _artifact(version)} for version in reversed(versions)]
        page = {"totalCount": len(nodes), "pageInfo": PAGE, "edges": nodes}
        collection = {"__typename": "ArtifactSequence", "artifacts": page} if versions else None
        return {"project": {"artifactType": {"artifactCollection": collection}}}

    def _of(self, told: dict[str, Any], key: str) -> list[Version]:
        found = self.committed(told["project"], told[key]) if told["entity"] == ENTITY else []
        return [version for version in found if version.kind == told.get("type", version.kind)]

    def _ProjectArtifactCollection(self, told: dict[str, Any]) -> dict[str, Any]:
        found = self._of(told, "name")
        return {"project": {"artifactType": {"artifactCollection": _collection(found[0]) if found else None}}}

    def _ArtifactTypeArtifactCollections(self, told: dict[str, Any]) -> dict[str, Any]:
        names = {v.collection: v for v in self.versions if (v.project, v.kind) == (told["project"], told["type"])}
        edges = [{"node": _collection(version)} for version in names.values() if told["entity"] == ENTITY]
        page = {"totalCount": len(edges), "pageInfo": PAGE, "edges": edges}
        return {"project": {"artifactType": {"artifactCollections": page} if edges else None}}

    def _ArtifactMembershipByName(self, told: dict[str, Any]) -> dict[str, Any]:
        collection, _, word = told["name"].partition(":")
        found = [v for v in self._of({**told, "name": collection}, "name") if word in (f"v{v.number}", *v.aliases)]
        return {"project": {"artifactCollectionMembership": _membership(found[0]) if found else None}}

    def _ArtifactType(self, told: dict[str, Any]) -> dict[str, Any]:
        found = self.committed(told["project"], told["name"].partition(":")[0])
        return {"project": {"artifact": {"artifactType": {"name": found[0].kind}} if found else None}}

    def _FetchArtifactManifest(self, told: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/artifact/{told['id']}/wandb_manifest.json"
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def _GetArtifactMembershipFileUrls(self, told: dict[str, Any]) -> dict[str, Any]:
        (version,) = [v for v in self._of(told, "collection") if f"v{v.number}" == told["alias"]]
        names = version.files.keys() - {"wandb_manifest.json"}
        nodes = [{"name": name, "directUrl": f"{self.url}/artifact/{version.id}/{name}"} for name in names]
        page = {"pageInfo": PAGE, "edges": [{"node": {"__typename": "File", **node}} for node in nodes]}
        held = {"__typename": "ArtifactSequence", "artifactMembership": {"files": page}}
        return {"project": {"artifactCollection": held}}


def _project(version: Version) -> dict[str, Any]:
    return {"id": "p", "internalId": "1", "name": version.project, "entity": {"name": ENTITY}}


def _sequence(version: Version) -> dict[str, Any]:
    return {"__typename": "ArtifactSequence", "name": version.collection, "project": _project(version)}


def _collection(version: Version) -> dict[str, Any]:
    about = {"id": version.collection, "description": None, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None}
    return _sequence(version) | about | {"type": {"name": version.kind}, "tags": {"edges": []}}


def _artifact(version: Version) -> dict[str, Any]:
    held = [body for name, body in version.files.items() if name != "wandb_manifest.json"]
    return {
        "__typename": "Artifact",
        "id": version.id,
        "artifactSequence": _sequence(version),
        "versionIndex": version.number,
        "artifactType": {"name": version.kind},
        "description": None,
        "metadata": version.metadata,
        "ttlDurationSeconds": -2,
        "ttlIsInherited": False,
        "tags": [],
        "historyStep": None,
        "state": version.state,
        "size": sum(map(len, held)),
        "digest": version.digest,
        "digestAlgorithm": "MANIFEST_MD5",
        "commitHash": version.id,
        "fileCount": len(held),
        "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": None,
        "aliases": [{**alias, "artifactCollection": _sequence(version)} for alias in _aliases(version)],
    }


def _aliases(version: Version) -> list[dict[str, Any]]:
    return [{"__typename": "ArtifactAlias", "id": word, "alias": word} for word in sorted(version.aliases)]


def _membership(version: Version) -> dict[str, Any]:
    about = {"__typename": "ArtifactCollectionMembership", "id": version.id, "versionIndex": version.number}
    about |= {"createdAt": "2026-01-01T00:00:00Z", "aliases": _aliases(version)}
    return about | {"artifactCollection": _sequence(version), "artifact": _artifact(version)}
