(function () {
  "use strict";
  var form = document.getElementById("exercise");
  var native = Number(form.dataset.native), nested = Number(form.dataset.nested);

  function value(name, unit) { return Number(form.elements[name].value) / unit; }
  function show(name, result) { form.elements[name].textContent = isFinite(result) ? result.toFixed(5) : "-"; }

  // The formulas of models/cost/textbook-5-14.model.
  function compute() {
    var base = value("base", 1), misses = value("tlb_misses", 1000), faults = value("page_faults", 1000);
    var miss = value("nested_miss", 1), fault = value("shadow_fault", 1), reference = miss / nested;
    show("shadow", base + faults * fault);
    show("nested", base + misses * miss);
    show("reference", reference);
    show("extra", base + misses * (nested - native) * reference);
    show("even", misses * miss / fault * 1000);
  }

  form.addEventListener("input", compute);
  form.querySelector(".choices").hidden = false;
  form.querySelector(".choices").addEventListener("click", function (event) {
    var set = event.target.dataset.set;
    if (!set) { return; }
    form.querySelectorAll("input").forEach(function (input) {
      if (input.dataset[set] !== undefined) { input.value = input.dataset[set]; }
    });
    compute();
  });
  compute();
})();
