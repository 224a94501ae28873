(() => {
  const find = document.getElementById("find");
  const result = document.getElementById("result");
  const rows = [...document.querySelectorAll("#checks tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const update = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const fits = words.every((word) => texts[i].includes(word));
      row.hidden = !fits || (result.value !== "" && row.dataset.result !== result.value);
      shown += row.hidden ? 0 : 1;
    });
    document.getElementById("found").textContent = `${shown} of ${rows.length} checks`;
  };
  find.addEventListener("input", update);
  result.addEventListener("change", update);
  document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("filter").hidden = false;
  // A link to a check that the filter hides shows it again.
  addEventListener("hashchange", () => {
    const row = document.getElementById(location.hash.slice(1));
    if (row && row.hidden) {
      find.value = result.value = "";
      update();
      row.scrollIntoView();
    }
  });
  update();
})();
